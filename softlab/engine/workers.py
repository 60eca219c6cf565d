"""Cases measured elsewhere: on worker processes of this machine, or of a cluster.

An executor is anything with the interface of ``concurrent.futures.Executor``. A worker is sent the
measuring function and the case by name, loads the study's file itself, and refuses to measure where
its code or its machine is not the one that the row's key speaks of.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from typing import Any, NamedTuple

import torch

from softlab.engine import provenance
from softlab.engine.identity import STUDY, scalar
from softlab.engine.journal import RESERVED, Row, Rows, Scalar
from softlab.engine.loading import at_home, load
from softlab.engine.locks import device_lock
from softlab.engine.sources import Closure
from softlab.extras import needed
from softlab.hints import first_line

TRIES = 2
"""A case whose worker died is tried again, alone, before it is recorded as failed."""
LONGEST = 1000
"""Letters of an error's message in a table."""
PRELOADED = (
    *(__name__, "softlab.operators", "softlab.measures", "softlab.laws", "softlab.inputs"),
    "torch.fx.experimental.symbolic_shapes",
)
"""What the server of worker processes imports once for all of them: studies import most of it, and
torch the last at its first comparison of shapes, in more than a second."""
KEPT = 2
"""Blocks whose set-up a process keeps: two workers now and then exchange theirs."""


@dataclass(frozen=True)
class Crew:
    """Workers: ``open`` makes an executor, and another where a dead worker has broken the first.

    ``size`` says how many cases it may have in hand at a time. ``shares``: how many of its
    processes share this machine's threads. ``single`` opens one that has a single worker, whose
    memory of earlier cases timed ones rely on; ``open`` does where it is None.
    """

    open: Callable[[], Executor]
    size: Callable[[], int]
    shares: int = 1
    single: Callable[[], Executor] | None = None

    def alone(self) -> Crew:
        """The same workers with one case in hand at a time."""
        return Crew(self.single or self.open, lambda: 1)


@dataclass(frozen=True)
class Task:
    """One case and all that a worker must know to measure it.

    ``measure`` is called with what it names of the ``case``, ``dtype``, ``device`` and ``setup``,
    what ``setup`` made of what it names, once for all tasks of a ``block``; ``alone`` among all
    cases on the device. ``within``: the columns that tell the rows of a case apart, or none where
    the measure returns one row. ``file`` is the study's file, if it came from one. ``parts``, the
    code as of ``provenance.Code``, and ``setting`` are those of the run.
    """

    measure: Callable[..., Mapping[str, Scalar] | Iterable[Mapping[str, Scalar]]]
    case: Mapping[str, Any]
    dtype: torch.dtype
    device: str
    alone: bool
    file: Path | None
    parts: Mapping[str, str]
    setting: Row
    setup: Callable[..., object] | None = None
    block: str = ""
    within: tuple[str, ...] = ()

    def packed(self) -> bytes:
        """As bytes that ``measured_there`` reads; ``ValueError`` for what has no name."""
        try:
            return pickle.dumps(self)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            msg = (
                f"the case cannot be sent to a worker ({error}): define its measure and the values "
                "of its axes by name at the top level of a file, or run without workers."
            )
            raise ValueError(msg) from None


def takes(function: Callable[..., object], offered: Iterable[str]) -> tuple[str, ...]:
    """Which of the ``offered`` arguments a function names; all, where it takes any by name.

    Raises ``TypeError`` where it needs others, and ``ValueError`` where Python cannot tell.
    """
    offered, signature = tuple(offered), inspect.signature(function)
    kinds = {name: x.kind for name, x in signature.parameters.items()}
    if inspect.Parameter.VAR_KEYWORD not in kinds.values():
        by_name = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
        offered = tuple(name for name in offered if kinds.get(name) in by_name)
    signature.bind(**dict.fromkeys(offered))
    return offered


def called(function: Callable[..., Any], offered: Mapping[str, Any]) -> Any:
    """What a function returns for those of the arguments that it names."""
    return function(**{name: offered[name] for name in takes(function, offered)})


def measured(task: Task) -> Rows:
    """The rows of the case, measured here: what its function returns, or why it failed."""
    device = torch.device(task.device)
    offered = {**task.case, "dtype": task.dtype, "device": device}
    with device_lock(task.device, alone=task.alone):
        load = os.getloadavg()[0]
        shared = _shared(task, offered)
        start, worked = time.perf_counter(), _worked(device)
        rows: Rows = [{"status": "failed", "error": shared.failed}]
        try:
            if not shared.failed:
                offered |= {} if task.setup is None else {"setup": shared.value}
                rows = _checked(called(task.measure, offered), task.within)
            if (left := provenance.arithmetic()) != task.setting["arithmetic"]:
                raise RuntimeError(_changed(left, str(task.setting["arithmetic"])))  # noqa: TRY301
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit too ends its case only
            rows = [{"status": "failed", "error": _reason(error)}]
        seconds = time.perf_counter() - start
        spent: Row = {"case_seconds": seconds}
        if task.setup is not None:
            spent["case_setup_seconds"] = shared.seconds
        if task.alone:
            spent["case_cpu_share"] = (_worked(device) - worked) / max(seconds, 1e-9)
            spent["case_load"] = load
    if rows[0]["status"] == "failed" and device.type == "cuda":
        rows = _after(device, rows)
    return [row | spent for row in rows]


_LOST: list[str] = []
"""Devices that take no more calls from this process."""


def lost() -> str:
    """Which device an error has taken from this process, in a sentence; empty where none is."""
    return f"{_LOST[0]} takes no more calls from this process" if _LOST else ""


def _after(device: torch.device, rows: Rows) -> Rows:
    """Failed rows, and whether the device can go on after them.

    After a want of memory the next case finds what there is. After some errors, such as an illegal
    access, CUDA refuses all calls of a process until it ends.
    """
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    except Exception:
        _LOST.append(str(device))
        return [row | {"error": f"{row['error']}; {lost()}"} for row in rows]
    return rows


class _Shared(NamedTuple):
    """What the set-up of a block made, or why it failed, and how long it took."""

    value: object = None
    failed: str = ""
    seconds: float = 0.0


_SHARED: dict[str, _Shared] = {}
"""By block, the one that was used last at the end."""


def release_setups() -> None:
    """Let go of what set-ups made in this process."""
    _SHARED.clear()


def _shared(task: Task, offered: Mapping[str, Any]) -> _Shared:
    """What the cases of the task's block share, computed for the first that asks."""
    if task.setup is None:
        return _Shared()
    if task.block not in _SHARED:
        most = 1 if task.alone else KEPT
        for block in list(_SHARED)[: max(0, len(_SHARED) + 1 - most)]:  # before memory is taken
            del _SHARED[block]
        start, value, failed = time.perf_counter(), None, ""
        try:
            value = called(task.setup, offered)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # its words alone: its frames would hold what they held
            failed = _reason(error)
        _SHARED[task.block] = _Shared(value, failed, time.perf_counter() - start)
    _SHARED[task.block] = found = _SHARED.pop(task.block)
    return found


def _worked(device: torch.device) -> float:
    """Processor seconds of the thread that measures and of processes that it waited for.

    Those of all threads where a device has threads of its own, which the first one waits for.
    """
    children = os.times()
    own = time.thread_time() if device.type == "cpu" else time.process_time()
    return own + children.children_user + children.children_system


def _checked(measured: object, within: Sequence[str]) -> Rows:
    """What a measure returned as the rows of a case that finished, or why it is none."""
    if not within:
        if not isinstance(measured, Mapping):
            msg = f"the measure returns a {type(measured).__name__}; give a mapping from column to "
            msg += "value, or name the columns that tell rows apart in Study.within."
            raise TypeError(msg)
        return [_row(measured, within)]
    if isinstance(measured, Mapping | str) or not isinstance(measured, Iterable):
        msg = (
            f"the measure returns a {type(measured).__name__}; give a list of mappings, one a row, "
            f"that {' and '.join(within)} tell apart."
        )
        raise TypeError(msg)
    rows = [_row(one, within) for one in measured]
    if not rows:
        raise ValueError("the measure returns no rows; give one at least.")  # noqa: EM101
    at = Counter(tuple(row[name] for name in within) for row in rows)
    for values, times in at.items():
        if times > 1:
            where = ", ".join(f"{name}={x!r}" for name, x in zip(within, values, strict=True))
            msg = f"the measure returns {times} rows of {where}; make one of them, or name a column"
            msg += " more in Study.within."
            raise ValueError(msg)
    return rows


def _row(measured: object, within: Sequence[str]) -> Row:
    """One mapping as a row, the columns of ``within`` first."""
    if not isinstance(measured, Mapping):
        msg = f"a row is a {type(measured).__name__}; give a mapping from column to value."
        raise TypeError(msg)
    if lacking := [name for name in within if name not in measured]:
        msg = f"a row has no {' and no '.join(lacking)}, which tells the rows of a case apart."
        raise ValueError(msg)
    row: Row = dict.fromkeys(within) | {"status": "ok", "error": None}
    for column, x in measured.items():
        if not isinstance(column, str) or not column or column in RESERVED:
            msg = f"the measure returns a column {column!r}; "
            if column in RESERVED:
                msg += f"softlab fills {', '.join(RESERVED)} itself: call it something else."
            else:
                msg += "the name of a column must be a word."
            raise ValueError(msg)
        try:
            row[str.__str__(column)] = scalar(x)
        except (TypeError, ValueError) as error:
            msg = f"{column} is {error}"
            raise type(error)(msg) from None
    return row


def _changed(now: str, before: str) -> str:
    flags = " ".join(sorted(set(now.split()) - set(before.split())))
    return (
        f"the measure leaves {flags}, with which other cases would be measured. Restore it, or set "
        "it at the top level of the study's file."
    )


def _reason(error: BaseException) -> str:
    """An error in a cell: its kind, its message, and where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    try:
        said = str(error)
    except Exception:
        said = "its message cannot be read"
    if len(said) > LONGEST:
        said = f"{said[:LONGEST]}... ({len(said) - LONGEST} letters more)"
    return f"{type(error).__name__}: {said} ({Path(last.filename).name}:{last.lineno})"


def processes(count: int) -> Crew:
    """``count`` worker processes on this machine, which die with this one."""
    provenance.sensible("workers", count)
    # Forked from a server without threads: fast, and safe beside torch's own threads.
    known = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in known else "spawn")
    if "forkserver" in known:
        context.set_forkserver_preload([*PRELOADED])

    def pool(size: int) -> Executor:
        return ProcessPoolExecutor(size, mp_context=context, initializer=_worker)

    return Crew(lambda: pool(count), lambda: count, shares=count, single=lambda: pool(1))


@contextlib.contextmanager
def dask(address: str, count: int = 1, *, timeout: float = 10) -> Iterator[Crew]:
    """The workers of a dask cluster, as many as it has at the time.

    ``address`` of a scheduler, as in "tcp://10.0.0.1:8786"; "local" for ``count`` processes here;
    "slurm" for ``count`` jobs as the configuration of dask-jobqueue describes them. ``timeout``, in
    seconds, for the scheduler to answer.

    Raises ``ValueError`` where no scheduler answers, and ``ModuleNotFoundError`` without dask.
    """
    with needed("dask"):
        from distributed import Client, LocalCluster
    with contextlib.ExitStack() as stack:
        if address == "local":
            provenance.sensible("workers", count)
            local = LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
            )
            cluster: Any = stack.enter_context(local)
        elif address == "slurm":
            from dask_jobqueue.slurm import SLURMCluster

            cluster = stack.enter_context(SLURMCluster())
            cluster.scale(jobs=count)
        else:
            cluster = address
        try:
            client: Any = stack.enter_context(Client(cluster, timeout=timeout))
        except (OSError, ValueError) as error:
            reason = first_line(error).rstrip(".")
            msg = (
                f"no dask scheduler answers at {address!r} ({reason}). Start one with "
                "'dask scheduler', and workers with 'dask worker ADDRESS', or give --dask local."
            )
            raise ValueError(msg) from None

        def size() -> int:
            try:
                return len(client.nthreads())
            except (RuntimeError, OSError):  # that it is closed, says the client, much later
                msg = f"the dask scheduler at {client.scheduler.address} is gone"
                raise ConnectionError(msg) from None

        yield Crew(client.get_executor, size)


def blocks(
    cases: Mapping[str, Mapping[str, Hashable]], least: int, shared: Sequence[str] = ()
) -> list[list[str]]:
    """The keys of ``cases`` in blocks, at least so many, if it can.

    Cases of a block agree in the axes that are ``shared`` by a set-up, wherever they stand in the
    grid, and beyond these in as many of the first axes as ``least`` allows: a set-up is computed
    twice only where there would be too few blocks. ``cases`` hold what tells the values of an axis
    apart.
    """
    found: dict[tuple[Hashable, ...], list[str]] = {}
    first = next(iter(cases.values()), {})
    axes = [*shared, *(axis for axis in first if axis not in shared)]
    for depth in range(max(1, len(shared)), len(axes) + 1 if first else 0):
        found = {}
        for key, case in cases.items():
            found.setdefault(tuple(case[axis] for axis in axes[:depth]), []).append(key)
        if len(found) >= least:
            break
    return list(found.values())


def rows(
    tasks: Mapping[str, Task], lots: Sequence[Sequence[str]], crew: Crew
) -> Generator[tuple[str, Rows], None, None]:
    """Keys with the rows of their cases, as workers finish them.

    Arguments: ``tasks`` by key; ``lots``, their keys in blocks that one worker had best do;
    ``crew``, who does them. A case whose worker died is tried again with no other in hand, so that
    no case answers for its neighbour; the second time it is a row that failed. Raises
    ``ValueError`` for a case that has no name, ``ConnectionError`` where the executor takes no
    more.
    """
    dispatch = _Dispatch(tasks, lots, crew)
    try:
        yield from dispatch.rows()
    finally:
        dispatch.stop()


class _Hand(NamedTuple):
    """A case that a worker has in hand, and the lane of those that follow it."""

    key: str
    lane: deque[str]


class _Dispatch:
    """Cases on their way to workers and back: submit what is free, collect, rebuild after a death.

    ``ahead``: blocks that nobody has begun. ``hands``: what each future measures. ``free``: lanes
    whose last case came back. ``suspects``: cases that may have killed their worker, for which the
    others wait.
    """

    def __init__(
        self, tasks: Mapping[str, Task], lots: Sequence[Sequence[str]], crew: Crew
    ) -> None:
        self.tasks = tasks
        self.crew = crew
        self.ahead = deque(deque(lot) for lot in lots if lot)
        self.hands: dict[Future[Rows], _Hand] = {}
        self.free: deque[deque[str]] = deque()
        self.deaths: Counter[str] = Counter()
        self.suspects: deque[str] = deque()
        self.executor = _opened(crew)

    def rows(self) -> Iterator[tuple[str, Rows]]:
        """Keys with rows, written down by the caller while the workers go on."""
        finished: list[tuple[str, Rows]] = []
        while True:
            try:
                self.submit()
            except ConnectionError:
                yield from finished
                raise
            yield from finished
            if not self.hands:
                return
            broken, finished = self.collect()
            if broken:
                yield from finished  # before a wait for new workers
                finished = []
                self.rebuild()

    def submit(self) -> None:
        """Give every idle worker a case; a suspect alone."""
        if self.suspects and not self.hands:
            self._send(self.suspects.popleft(), deque())
        while not self.suspects and len(self.hands) < max(1, self.crew.size()):
            lane = self._lane_after(self.free.popleft() if self.free else deque())
            if lane is not None:
                self._send(lane.popleft(), lane)
            elif not self.free:
                break

    def collect(self) -> tuple[bool, list[tuple[str, Rows]]]:
        """Whether a death broke the executor, and the cases that are done for good."""
        done, _ = wait(self.hands, return_when=FIRST_COMPLETED)
        broken = any(isinstance(_error(future), BrokenExecutor) for future in done)
        lone = len(self.hands) == 1
        finished: list[tuple[str, Rows]] = []
        for future in list(self.hands) if broken else done:
            key, lane = self.hands.pop(future)
            self.free.append(lane)
            error = _error(future)
            if error is None:
                finished.append((key, future.result()))
                continue
            if not isinstance(error, BrokenExecutor) or lone:
                self.deaths[key] += 1
            if self.deaths[key] < TRIES:
                self.suspects.append(key)
            else:
                finished.append((key, [{"status": "failed", "error": _died(error)}]))
        return broken, finished

    def rebuild(self) -> None:
        """Open another executor in the place of one that a death has broken."""
        self.stop()
        self.executor = _opened(self.crew)

    def stop(self) -> None:
        """Take back what no worker has begun, and end the executor."""
        for future in self.hands:
            future.cancel()
        _stop(self.executor)

    def _send(self, key: str, lane: deque[str]) -> None:
        task = self.tasks[key]
        try:
            future = self.executor.submit(
                measured_there, str(task.file) if task.file else None, task.packed()
            )
        except BrokenExecutor as error:  # an idle worker died: as if the case had met it
            future = Future()
            future.set_exception(error)
        except RuntimeError as error:
            msg = f"the executor takes no more cases ({error})"
            raise ConnectionError(msg) from None
        self.hands[future] = _Hand(key, lane)

    def _lane_after(self, lane: deque[str]) -> deque[str] | None:
        """The lane itself while it lasts, then a new block, then the half of another's."""
        if lane:
            return lane
        if self.ahead:
            return self.ahead.popleft()
        longest = max((hand.lane for hand in self.hands.values()), key=len, default=lane)
        if not longest:
            return None
        return deque(reversed([longest.pop() for _ in range((len(longest) + 1) // 2)]))


def _opened(crew: Crew) -> Executor:
    """An executor whose workers are known to start, which no case must answer for."""
    executor = crew.open()
    try:
        executor.submit(os.getpid).result()
    except RuntimeError as error:
        _stop(executor)
        reason = first_line(error)
        msg = (
            f"the executor has no worker that starts ({reason}); in a script, call run below "
            "'if __name__ == \"__main__\":'"
        )
        raise ConnectionError(msg) from None
    return executor


def _error(future: Future[Rows]) -> BaseException | None:
    """Why the worker gave no row, of which a lost scheduler's cancelling is one reason."""
    try:
        return future.exception()
    except CancelledError as error:
        return error


def _died(error: BaseException) -> str:
    if isinstance(error, BrokenExecutor):  # whose own words say no more
        return f"WorkerDied: {TRIES} times: out of memory, or a crash outside Python"
    reason = (str(error) or type(error).__name__).partition(". ")[0]
    return f"WorkerDied: {TRIES} times: {reason}"


def measured_there(file: str | None, packed: bytes) -> Rows:
    """The rows of a packed ``Task`` whose study is defined in ``file``, measured in a worker."""
    with _ONE_AT_A_TIME:  # a worker of dask may have many threads
        if _LOST:  # the row that says so was sent; another worker takes the place of this one
            os._exit(1)
        try:
            module = load(file).__name__ if file else ""
            with at_home(module) as closure:
                task: Task = pickle.loads(packed)
                _limit(int(task.setting["threads"] or 1))
                _check(tuple(task.parts.items()), task.file, module, closure)
                here = provenance.setting(torch.device(task.device), task.dtype)
                for name, x in task.setting.items():
                    _same(name, here[name], x)
                return measured(task)
        except (ValueError, ImportError, AttributeError) as error:
            reason = f"{type(error).__name__}: the worker cannot measure this case: {error}"
            if str(getattr(error, "name", "")).startswith(STUDY):
                reason += (
                    ", for the study's file, or one that it imports, has changed: run it again"
                )
            return [{"status": "failed", "error": reason}]


_CHECKED: set[tuple[object, ...]] = set()


def _check(
    parts: tuple[tuple[str, str], ...], file: Path | None, module: str, closure: Closure
) -> None:
    """Raise ``ValueError`` where this worker's code is another; asked once for each code."""
    if (parts, module) not in _CHECKED:
        states = provenance.here(dict(parts), closure, file.parent if file else Path())
        for name, state in parts:
            _same(name, states[name], state)
        _CHECKED.add((parts, module))


_ONE_AT_A_TIME = threading.Lock()


def _same(name: str, here: object, there: object) -> None:
    if here != there:
        msg = f"{name} is {here!r} where it runs and {there!r} where its row belongs. "
        msg += "Start the workers anew; set flags at the top level of the study's file."
        raise ValueError(msg)


@functools.lru_cache(maxsize=1)
def _limit(threads: int) -> None:
    """The share of threads of a worker, for torch and for other libraries of linear algebra."""
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    threadpool_limits(threads)


def _worker() -> None:
    """Leave interrupts to the run, and end when it does, however it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        wait_for_any([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _stop(executor: Executor) -> None:
    """End the executor without waiting for what it has in hand."""
    mine = list((getattr(executor, "_processes", None) or {}).values())
    executor.shutdown(wait=False)
    for process in mine:
        process.terminate()
