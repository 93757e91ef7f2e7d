"""What all tests share: one thread a process, reproducible examples, ranks as processes."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.processes import GlooPool

torch.set_num_threads(1)

# The same examples every time, and no deadlines: a busy machine is not a bug.
settings.register_profile(
    "repository",
    derandomize=True,
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repository")


@pytest.fixture(scope="session")
def gloo() -> Iterator[GlooPool]:
    """Give worlds of real processes: `gloo(2).run(function, *args)` returns every rank's result."""
    pool = GlooPool()
    yield pool
    pool.close()
