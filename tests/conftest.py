"""What all tests share: one thread a process, reproducible examples, ranks as processes."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

from collections.abc import Generator, Iterator
from contextlib import nullcontext

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch.torch_version import TorchVersion

from tests.helpers.blas import FourAccumulators
from tests.helpers.processes import GlooPool

torch.set_num_threads(1)
# What torch 2.6 lacks, as it appears in errors: FSDP2 on the host, and a place to see what FSDP2 reduces.
_OLD_FSDP2 = ("'Stream' object has no attribute 'record_event'", "does not show what fully_shard reduces")

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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each accuracy test of one process again on a processor whose BLAS is as inexact as any."""
    if metafunc.definition.get_closest_marker("accuracy") and "gloo" not in metafunc.fixturenames:
        metafunc.parametrize("blas", ["machine", "four_accumulators"], indirect=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Skip what torch 2.6 cannot do itself."""
    report = yield
    old = torch.__version__ < TorchVersion("2.7")
    if old and report.failed and call.excinfo is not None:
        lacking = [text for text in _OLD_FSDP2 if text in str(call.excinfo.value)]
        if lacking:
            report.outcome = "skipped"
            report.longrepr = (str(item.path), 0, f"torch {torch.__version__}, FSDP2: {lacking[0]}")
    return report


@pytest.fixture(autouse=True)
def blas(request: pytest.FixtureRequest) -> Iterator[None]:
    """Replace dot products, in this thread, where the parameter says so."""
    with FourAccumulators() if getattr(request, "param", "machine") == "four_accumulators" else nullcontext():
        yield
