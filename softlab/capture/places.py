"""A function of another package that one of ours stands in for, while any thread needs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Place:
    """Where the function is looked up: ``real``, for how many blocks another stands there, and who
    waits in each thread.
    """

    def __init__(self, real: Callable[..., Any] | None = None) -> None:
        self.real: Any = real
        self._lock, self._blocks, self._thread = threading.Lock(), 0, threading.local()

    @property
    def waiting(self) -> tuple[Any, ...]:
        """Who waits in this thread."""
        found: tuple[Any, ...] = getattr(self._thread, "waiting", ())
        return found

    @contextmanager
    def waited(self, waiting: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        """Let these wait in this thread; who waited before is given, and waits again after."""
        before, self._thread.waiting = self.waiting, waiting
        try:
            yield before
        finally:
            self._thread.waiting = before

    @contextmanager
    def taken(self, owner: Any, name: str, stand_in: Callable[..., Any]) -> Iterator[None]:
        """Let ``stand_in`` be what others find, until the last block of any thread ends."""
        with self._lock:
            if self._blocks == 0:
                self.real = getattr(owner, name)
                setattr(owner, name, stand_in)
            self._blocks += 1
        try:
            yield
        finally:
            with self._lock:
                self._blocks -= 1
                if self._blocks == 0:
                    setattr(owner, name, self.real)
