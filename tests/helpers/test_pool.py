"""The warm pool of ranks: a world that failed or lost a rank is replaced, the others stay."""

from __future__ import annotations

import os
import signal

import pytest
import torch
import torch.distributed as dist

from tests.helpers.processes import GlooPool


@pytest.fixture
def pool():
    made = GlooPool()
    yield made
    made.close()


def total() -> tuple[float, int]:
    ones = torch.ones(1)
    dist.all_reduce(ones)
    return ones.item(), os.getpid()


def leave_the_others(how: str) -> None:
    if dist.get_rank() == 0:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("this rank gives up")
    dist.all_reduce(torch.ones(1))


@pytest.mark.parametrize(
    ("how", "says"), [("killed", "rank 0 of 2 ended"), ("gives up", "rank 1 of 2 did not answer")]
)
def test_a_world_that_fails_is_replaced(pool, how, says):
    before = pool(2).run(total)
    assert pool(2).run(total) == before
    with pytest.raises(AssertionError, match=says):
        pool(2).run(leave_the_others, how, timeout=30.0 if how == "killed" else 2.0)
    after = pool(2).run(total)
    assert [value for value, _ in after] == [2.0, 2.0]
    assert not {process for _, process in after} & {process for _, process in before}
