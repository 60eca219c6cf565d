"""Bring Fashion-MNIST into the cache: four files that a package of Debian carries.

The package is downloaded by the user's own apt and unpacked without being installed; each file's
SHA-256 is checked. Where there is no apt, put the files into a folder of your own by any means.
Source: Xiao et al. 2017 (arXiv 1708.07747); MIT licence.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from softlab.datasets.download import FetchError, cache_folder, placed, sha256

NAME = "fashion-mnist"
VARIABLE = "SOFTLAB_FASHION_MNIST"
PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
SUMS = {
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
    "train-images-idx3-ubyte.gz": (
        "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7"
    ),
    "train-labels-idx1-ubyte.gz": (
        "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056"
    ),
}
"""Of the files as the package has them."""


def folder() -> Path:
    """Where the files are looked for.

    ``$SOFTLAB_FASHION_MNIST``, else what was fetched, else where Debian's package installs them.
    """
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    fetched = cache_folder() / NAME
    return fetched if fetched.is_dir() else INSTALLED


def chosen() -> list[Path]:
    """The folder of the user's own, if one is named and there: its files may be any.

    For the ``inputs`` of a study, whose rows are then known by the content of the files. The
    package's files need no such mark: they are checked against ``SUMS`` when they are fetched.
    """
    named = os.environ.get(VARIABLE)
    return [Path(named).absolute()] if named and Path(named).is_dir() else []


def fetch(cache: Path | None = None) -> Path:
    """Bring the files into the cache; return their folder.

    Nothing is downloaded where they are there and intact; the folder appears under its name only
    when complete, by one rename. Raises ``FetchError`` where apt-get or dpkg-deb is absent or
    fails, and for a file with another checksum.
    """
    return placed((cache or cache_folder()) / NAME, intact, _unpacked)


def intact(place: Path) -> bool:
    """Whether the folder holds the four files, to the last bit."""
    try:
        return all(sha256(place / name) == due for name, due in SUMS.items())
    except OSError:
        return False


def _unpacked(staging: Path) -> Path:
    """The files, out of a package that is downloaded into ``staging``."""
    _called("apt-get", "download", PACKAGE, within=staging)
    archives = [str(path) for path in staging.glob("*.deb")]
    _called("dpkg-deb", "-x", *archives[:1], "unpacked", within=staging)
    unpacked = Path(staging, "unpacked", *INSTALLED.parts[1:])
    if not intact(unpacked):
        msg = f"{PACKAGE} does not hold the files of Fashion-MNIST that are known here."
        raise FetchError(msg)
    return unpacked


def _called(*command: str, within: Path) -> None:
    said = "it is not installed"
    try:
        # A sandboxed apt cannot write here; as root it says so and goes on.
        ended = subprocess.run(command, cwd=within, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pass
    else:
        if not ended.returncode:
            return
        said = " ".join(ended.stderr.split()) or "it said nothing"
    msg = (
        f"{command[0]} could not bring {PACKAGE}: {said}. Put {', '.join(SUMS)} into a folder and "
        f"name it in {VARIABLE}."
    )
    raise FetchError(msg)
