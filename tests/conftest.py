"""One thread a worker, reproducible Hypothesis, no leftover state."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("softlab", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("softlab")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)
