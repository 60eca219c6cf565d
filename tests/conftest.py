"""One thread a worker, reproducible Hypothesis, no leftover state."""

import pytest
import torch
from hypothesis import settings

from softlab.engine import locks

settings.register_profile("softlab", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("softlab")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_devices(tmp_path_factory):
    """No test waits for a run elsewhere on the machine."""
    before, locks.ROOMS = locks.ROOMS, tmp_path_factory.mktemp("rooms")
    yield
    locks.ROOMS = before
