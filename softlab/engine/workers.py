"""Cases measured elsewhere: on worker processes of this machine, or of a cluster.

An executor is anything with the interface of ``concurrent.futures.Executor``. A worker is sent the
measuring function and the case by name, loads the study's file itself, and refuses to measure where
its code or its machine is not the one that the row's key speaks of.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
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
from typing import Any

import torch

from softlab.engine import provenance
from softlab.engine.identity import STUDY, scalar
from softlab.engine.journal import RESERVED, Row, Scalar
from softlab.engine.loading import at_home, load
from softlab.engine.locks import beside
from softlab.engine.sources import Closure
from softlab.extras import needed

TRIES = 2
"""A case whose worker died is tried again, alone, before it is recorded as failed."""
LONGEST = 1000
"""Letters of an error's message in a table."""


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

    ``measure`` is called with the ``case``, ``dtype`` and ``device``; ``alone`` among all cases on
    the device. ``file`` is the study's file, if it came from one. ``parts``, the code as of
    ``provenance.Code``, and ``setting`` are those of the run.
    """

    measure: Callable[..., Mapping[str, Scalar]]
    case: Mapping[str, Any]
    dtype: torch.dtype
    device: str
    alone: bool
    file: Path | None
    parts: Mapping[str, str]
    setting: Row

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


def measured(task: Task) -> Row:
    """The row of the case, measured here: what its function returns, or why it failed."""
    device = torch.device(task.device)
    with beside(task.device, alone=task.alone):
        load = os.getloadavg()[0]
        start, worked = time.perf_counter(), _worked(device)
        try:
            row = _checked(task.measure(**task.case, dtype=task.dtype, device=device))
            if (left := provenance.arithmetic()) != task.setting["arithmetic"]:
                raise RuntimeError(_changed(left, str(task.setting["arithmetic"])))  # noqa: TRY301
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit too ends its case only
            row = {"status": "failed", "error": _reason(error)}
        row["case_seconds"] = seconds = time.perf_counter() - start
        if task.alone:
            row["case_cpu_share"] = (_worked(device) - worked) / max(seconds, 1e-9)
            row["case_load"] = load
    if row["status"] == "failed" and device.type == "cuda":
        torch.cuda.empty_cache()  # after a want of memory the next case finds what there is
    return row


def _worked(device: torch.device) -> float:
    """Processor seconds of the thread that measures and of processes that it waited for.

    Those of all threads where a device has threads of its own, which the first one waits for.
    """
    children = os.times()
    own = time.thread_time() if device.type == "cpu" else time.process_time()
    return own + children.children_user + children.children_system


def _checked(measured: object) -> Row:
    """What a measure returned as a row that finished, or why it is none."""
    if not isinstance(measured, Mapping):
        msg = (
            f"the measure returns a {type(measured).__name__}; give a mapping from column to value."
        )
        raise TypeError(msg)
    row: Row = {"status": "ok", "error": None}
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
        said = "its message cannot be had"
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
        context.set_forkserver_preload([__name__])

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
            reason = str(error).splitlines()[0].rstrip(".")
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


def blocks(cases: Mapping[str, Mapping[str, Any]], least: int) -> list[list[str]]:
    """The keys of ``cases`` in consecutive blocks, at least so many, if it can.

    Cases of a block agree in as many of the first axes as that allows, since a measure keeps what
    neighbours share: its input, an exact answer.
    """
    found: dict[tuple[int, ...], list[str]] = {}
    axes = len(next(iter(cases.values()), ()))
    for depth in range(1, axes + 1):
        found = {}
        for key, case in cases.items():
            lead = tuple(id(x) for x in list(case.values())[:depth])
            found.setdefault(lead, []).append(key)
        if len(found) >= least:
            break
    return list(found.values())


def rows(
    tasks: Mapping[str, Task],
    lots: Sequence[Sequence[str]],
    crew: Crew,
) -> Generator[tuple[str, Row], None, None]:
    """Keys with their rows, as workers finish them.

    Arguments: ``tasks`` by key; ``lots``, their keys in blocks that one worker had best do;
    ``crew``, who does them. A case whose worker died is tried again with no other in hand, so that
    no case answers for its neighbour; the second time it is a row that failed. Raises
    ``ValueError`` for a case that has no name, ``ConnectionError`` where the executor takes no
    more.
    """
    ahead = deque(deque(lot) for lot in lots if lot)
    lanes: dict[Future[Row], deque[str]] = {}
    keys: dict[Future[Row], str] = {}
    deaths: Counter[str] = Counter()
    suspects: deque[str] = deque()
    finished: list[tuple[str, Row]] = []
    executor = _opened(crew)

    def send(key: str, lane: deque[str]) -> None:
        task = tasks[key]
        try:
            future = executor.submit(
                measured_there, str(task.file) if task.file else None, task.packed()
            )
        except BrokenExecutor as error:  # an idle worker died: as if the case had met it
            future = Future()
            future.set_exception(error)
        except RuntimeError as error:
            msg = f"the executor takes no more cases ({error})"
            raise ConnectionError(msg) from None
        keys[future], lanes[future] = key, lane

    def lane_after(lane: deque[str]) -> deque[str] | None:
        """The lane itself while it lasts, then a new block, then the half of another's."""
        if lane:
            return lane
        if ahead:
            return ahead.popleft()
        longest = max(lanes.values(), key=len, default=lane)
        if not longest:
            return None
        return deque(reversed([longest.pop() for _ in range((len(longest) + 1) // 2)]))

    free: deque[deque[str]] = deque()
    try:
        while True:
            try:
                if suspects and not keys:
                    send(suspects.popleft(), deque())
                while not suspects and len(keys) < max(1, crew.size()):
                    lane = lane_after(free.popleft() if free else deque())
                    if lane is None:
                        if free:
                            continue
                        break
                    send(lane.popleft(), lane)
            except ConnectionError:
                yield from finished
                raise
            yield from finished  # written down while the workers go on
            finished = []
            if not keys:
                break
            done, _ = wait(keys, return_when=FIRST_COMPLETED)
            broken = any(isinstance(_error(future), BrokenExecutor) for future in done)
            lone = len(keys) == 1
            for future in list(keys) if broken else done:
                key, lane = keys.pop(future), lanes.pop(future)
                free.append(lane)
                error = _error(future)
                if error is None:
                    finished.append((key, future.result()))
                    continue
                if not isinstance(error, BrokenExecutor) or lone:
                    deaths[key] += 1
                if deaths[key] < TRIES:
                    suspects.append(key)
                else:
                    finished.append((key, {"status": "failed", "error": _died(error)}))
            if broken:
                yield from finished  # before a wait for new workers
                finished = []
                _stop(executor)
                executor = _opened(crew)
    finally:
        for future in keys:
            future.cancel()
        _stop(executor)


def _opened(crew: Crew) -> Executor:
    """An executor whose workers are known to start, which no case must answer for."""
    executor = crew.open()
    try:
        executor.submit(os.getpid).result()
    except RuntimeError as error:
        _stop(executor)
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        msg = (
            f"the executor has no worker that starts ({reason}); in a script, call run below "
            "'if __name__ == \"__main__\":'"
        )
        raise ConnectionError(msg) from None
    return executor


def _error(future: Future[Row]) -> BaseException | None:
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


def measured_there(file: str | None, packed: bytes) -> Row:
    """The row of a packed ``Task`` whose study is defined in ``file``, measured in a worker."""
    with _ONE_AT_A_TIME:  # a worker of dask may have many threads
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
            return {"status": "failed", "error": reason}


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
