"""One thread a worker, reproducible Hypothesis, no leftover state, samples of large tests."""

import os
import zlib

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

    A case is drawn by its name, so that each law meets a share of the subjects and each subject
    a share of the laws. All are asked by ``--all``, and where a test is named with ``::``.
    """
    if config.getoption("--all") or any("::" in name for name in config.args):
        return
    left, dropped = [], []
    for item in items:
        mark = item.get_closest_marker("sampled")
        drawn = mark is None or zlib.crc32(item.nodeid.encode()) < mark.args[0] * 2**32
        (left if drawn else dropped).append(item)
    config.hook.pytest_deselected(items=dropped)
    items[:] = left


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_devices(tmp_path_factory):
    """No test waits for a run elsewhere on the machine."""
    before, locks.ROOMS = locks.ROOMS, tmp_path_factory.mktemp("rooms")
    yield
    locks.ROOMS = before
