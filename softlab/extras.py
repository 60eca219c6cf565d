"""Optional libraries: what to install where one is missing.

The distribution is ``softlab-attention``: on the package index the name ``softlab`` is another
project's. Hints name the libraries themselves, which is right for a clone and for a wheel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib import metadata

DISTRIBUTION = "softlab-attention"


@contextlib.contextmanager
def needed(extra: str) -> Iterator[None]:
    """Around the import of what an extra of this package brings.

    Args:
        extra: name of the extra, "report" for example.

    Raises:
        ModuleNotFoundError: the import failed; the message is the command that installs the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        msg = f"{error.name or 'a library'} is not installed. Run: {command(extra)}"
        raise ModuleNotFoundError(msg, name=error.name) from None


def command(extra: str) -> str:
    """The command that installs the libraries of an extra, in the versions that softlab takes."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:  # run from a folder that nobody installed
        return f"python -m pip install -e '.[{extra}]' in a clone of softlab"
    wanted = (line.partition(";") for line in lines)
    names = [name.strip() for name, _, marker in wanted if f'"{extra}"' in marker.replace("'", '"')]
    return "python -m pip install " + " ".join(f"'{name}'" for name in sorted(names))
