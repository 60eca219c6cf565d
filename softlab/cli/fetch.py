"""``softlab fetch``: the weights of models."""

from __future__ import annotations

from typing import Annotated

import typer

from softlab.cli.console import fail, say

EXAMPLES = (
    "Examples:  softlab fetch minilm   |   softlab fetch vit photographs   |   "
    "softlab fetch fashion-mnist"
)


def fetch(
    names: Annotated[
        list[str], typer.Argument(help="Models of the catalogue, photographs, fashion-mnist.")
    ],
) -> None:
    """Bring weights and images into the cache, for longer recordings and studies of models."""
    from softlab.datasets import download, fashion
    from softlab.hints import hint

    known = (*download.CATALOGUE, fashion.NAME)
    for name in names:
        if name not in known:
            fail(f"nothing is named {name!r}; there are {', '.join(known)}.{hint(name, known)}")
    for name in names:
        try:
            path = fashion.fetch() if name == fashion.NAME else download.fetch(name, progress=True)
        except (ValueError, OSError, download.FetchError) as error:
            fail(str(error))
        say(str(path))
