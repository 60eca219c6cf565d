"""One thread a process, reproducible Hypothesis, no leftover state, samples of large tests."""

import gc
import os
import zlib

# Read when torch is imported, here and in every process that a test starts: with as many threads
# as cores, two workers and their children wait for one another at full speed.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

from softlab.engine import locks

# Read when Triton is imported, by torch perhaps: what a test of its kernels runs on a CPU.
os.environ.setdefault("TRITON_INTERPRET", "1")
settings.register_profile("softlab", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("softlab")


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="every case of the tests that are sampled")


def pytest_collection_modifyitems(config, items):
    """Of a test that is marked ``sampled(share)``, leave that share of its cases, always the same.

    A case is drawn by its name. With ``each=True`` every value of every parameter keeps a case, so
    that each law is asked of some subject, and each subject some law. All are asked by ``--all``,
    and where a test is named with ``::``.
    """
    if config.getoption("--all") or any("::" in name for name in config.args):
        return
    met, left = set(), {item for item in items if item.get_closest_marker("sampled") is None}
    for item in sorted(items, key=_number):
        mark = item.get_closest_marker("sampled")
        if mark is None:
            continue
        values = {(item.function, name, id(x)) for name, x in item.callspec.params.items()}
        if _number(item) < mark.args[0] * 2**32 or (mark.kwargs and not values <= met):
            left.add(item)
            met |= values
    config.hook.pytest_deselected(items=[item for item in items if item not in left])
    items[:] = [item for item in items if item in left]


def _number(item):
    return zlib.crc32(item.nodeid.encode())


def pytest_collection():
    gc.disable()


def pytest_collection_finish():
    """What was imported and collected stays to the end: it is not searched for garbage again."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_devices(tmp_path_factory):
    """No test waits for a run elsewhere on the machine."""
    before, locks.ROOMS = locks.ROOMS, tmp_path_factory.mktemp("rooms")
    yield
    locks.ROOMS = before
