"""``softlab fetch``: the weights of models."""

from __future__ import annotations

from typing import Annotated

import typer

from softlab.cli.console import fail, say, say_json

EXAMPLES = (
    "Examples:  softlab fetch minilm   |   softlab fetch vit photographs   |   "
    "softlab fetch fashion-mnist"
)


def _names(begun: str) -> list[str]:
    """What a shell offers to complete."""
    from softlab.datasets import fashion
    from softlab.datasets.wheels import CATALOGUE

    return [name for name in (*CATALOGUE, fashion.NAME) if name.startswith(begun)]


def fetch(
    names: Annotated[
        list[str],
        typer.Argument(
            help="Models of the catalogue, photographs, fashion-mnist.", autocompletion=_names
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Names and folders as JSON.")] = False,
) -> None:
    """Bring weights and images into the cache, for longer recordings and studies of models.

    What is there and intact is not downloaded again. Exit codes: 0 all is there, 2 something could
    not be brought.
    """
    from softlab.datasets import download, fashion
    from softlab.hints import hint

    known = (*download.CATALOGUE, fashion.NAME)
    for name in names:
        if name not in known:
            fail(f"nothing is named {name!r}; there are {', '.join(known)}.{hint(name, known)}")
    places = []
    for name in names:
        try:
            path = fashion.fetch() if name == fashion.NAME else download.fetch(name, progress=True)
        except (ValueError, OSError, download.FetchError) as error:
            fail(str(error))
        places.append({"name": name, "folder": path})
        if not as_json:
            say(str(path))
    if as_json:
        say_json(places)
