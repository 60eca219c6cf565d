"""Who may go on: one run a journal, and one timed case a device.

Locks are those of the operating system on open files: a process that dies, however it dies, holds
none. A file system without locks (some of those of clusters) leaves runs unguarded, and says so. A
system without ``fcntl``, Windows, runs no study and says so; all else works there.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

USER = os.getuid() if hasattr(os, "getuid") else 0
ROOMS = Path(tempfile.gettempdir()) / f"softlab-{USER}"
"""Where the locks of devices are: one place for all runs of a user on a machine."""
PATIENCE = 10.0
"""Seconds after which a case that waits for its device says so."""
UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP}


class TakenError(ValueError):
    """Another process holds the lock."""


@contextlib.contextmanager
def file_lock(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock of the file ``path`` inside the block; the file names its owner.

    Yields whether it holds, which it does not on a file system without locks.

    Raises ``TakenError``, with the owner, where another process holds it and ``wait`` is false;
    ``OSError`` where no file can be written; ``ValueError`` on a system without ``fcntl``.
    """
    _there()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            held = _lock(file.fileno(), fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            msg = f"{file.read().strip() or 'another run'} is writing there"
            raise TakenError(msg) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield held


@contextlib.contextmanager
def device_lock(device: str, *, alone: bool) -> Iterator[None]:
    """Hold ``device`` inside the block: with others, or ``alone`` among all of this user's runs.

    Whoever waits to be alone is passed by nobody: all go through one gate. Raises ``ValueError``
    on a system without ``fcntl``.
    """
    _there()
    name = device.replace(":", "-")
    ROOMS.mkdir(mode=0o700, parents=True, exist_ok=True)
    if ROOMS.stat().st_uid != USER:  # who could hold our locks for ever
        msg = f"{ROOMS} is another user's; set TMPDIR to a folder of your own."
        raise PermissionError(msg)
    with (ROOMS / f"{name}.room").open("a") as room:
        with (ROOMS / f"{name}.gate").open("a") as gate:
            _wait(gate.fileno(), fcntl.LOCK_EX, device)
            _wait(room.fileno(), fcntl.LOCK_EX if alone else fcntl.LOCK_SH, device)
        yield


def missing() -> str:
    """Why no study can run on this system; empty where one can."""
    if fcntl is not None:
        return ""
    return (  # type: ignore[unreachable]
        "a study locks its folder and its device by fcntl, which this system "
        f"({platform.system()}) has not. Run studies under Linux, macOS or WSL; operators, "
        "laws, record, substitute and report work here."
    )


def _there() -> None:
    """Raise ``ValueError`` where the system has no locks of this kind."""
    if why := missing():
        raise ValueError(why)


def _wait(handle: int, kind: int, device: str) -> None:
    """Take the lock, and say so if that takes long."""
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        try:
            if not _lock(handle, kind | fcntl.LOCK_NB):
                _unguarded()
        except BlockingIOError:
            time.sleep(0.01)
        else:
            return
    said = "waiting for the device %s, where another run of softlab measures"
    logging.getLogger("softlab").warning(said, device)
    _lock(handle, kind)


@functools.cache
def _unguarded() -> None:
    """Say once that timed cases of other runs may disturb those of this one."""
    said = "locks do not work in %s: let no other run of softlab measure times meanwhile"
    logging.getLogger("softlab").warning(said, ROOMS)


def _lock(handle: int, kind: int) -> bool:
    """Take the lock; false where the file system has none."""
    try:
        fcntl.flock(handle, kind)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return False
    return True
