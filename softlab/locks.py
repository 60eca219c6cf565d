"""Who may go on: one run a journal, and one timed case a device.

Locks are those of the operating system on open files: a process that dies, however it dies, holds
none. A file system without locks (some of those of clusters) leaves runs unguarded.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP}


class TakenError(ValueError):
    """Another process holds the lock."""


@contextlib.contextmanager
def owned(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of the file ``path`` inside the block; the file names its owner.

    Raises ``TakenError``, with the owner, where another process holds it and ``wait`` is false;
    ``OSError`` where no file can be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            _lock(file.fileno(), fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            msg = f"{file.read().strip() or 'another run'} is writing there"
            raise TakenError(msg) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


@contextlib.contextmanager
def beside(device: str, *, alone: bool) -> Iterator[None]:
    """Hold ``device`` inside the block: with others, or ``alone`` among all of this user's runs.

    Whoever waits to be alone is passed by nobody: all go through one gate.
    """
    name = f"softlab-{os.getuid()}-{device.replace(':', '-')}"
    room, gate = (Path(tempfile.gettempdir()) / f"{name}.{kind}" for kind in ("lock", "gate"))
    with room.open("a") as inside:
        with gate.open("a") as entering:
            _lock(entering.fileno(), fcntl.LOCK_EX)
            _lock(inside.fileno(), fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


def _lock(handle: int, kind: int) -> None:
    try:
        fcntl.flock(handle, kind)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
