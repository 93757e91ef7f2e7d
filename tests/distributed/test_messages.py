"""Gathers by messages: every rank's rows arrive, within one limit; an interrupt leaves no disorder."""

from __future__ import annotations

import os
import time
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist

from hjepa_dist_metrics import MetricCollection, MetricsError, WeightedMean
from hjepa_dist_metrics.distributed import ProcessContext, connect, group_channel as channels, messages
from hjepa_dist_metrics.distributed.group_channel import group_channel
from hjepa_dist_metrics.distributed.messages import Messages
from tests.processes import run_disposable

OWN = 63.0  # seconds; a limit of no other test, so that the channels are this file's


class Work:
    """A message that is done once it has been waited for."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        self.clock, self.seconds = clock, seconds
        self.limit: float | None = None

    def is_completed(self) -> bool:
        return self.limit is not None

    def wait(self, limit: timedelta) -> None:
        self.limit = limit.total_seconds()
        self.clock[0] += min(self.seconds, self.limit)
        if self.seconds > self.limit:
            raise RuntimeError("Timed out")


class Recorder:
    """A group that notes its messages; each takes some seconds on a clock of its own."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.clock = seconds, [100.0]
        self.calls: list[tuple[str, int]] = []
        self.works: list[Work] = []

    def recv(self, tensors: list[torch.Tensor], rank: int, tag: int) -> Work:
        return self._post("recv", rank)

    def send(self, tensors: list[torch.Tensor], rank: int, tag: int) -> Work:
        return self._post("send", rank)

    def _post(self, kind: str, rank: int) -> Work:
        self.calls.append((kind, rank))
        self.works.append(Work(self.clock, self.seconds))
        return self.works[-1]


def room(world_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(3, dtype=torch.int64), torch.zeros((world_size, 3), dtype=torch.int64)


@pytest.mark.parametrize("world_size", [2, 5])
def test_a_gather_is_one_message_to_and_from_each_other_rank(world_size):
    firsts = []
    for rank in range(world_size):
        group = Recorder()
        Messages(group, rank, world_size).gather(*room(world_size), 1.0, lambda: None)
        others = [other for other in range(world_size) if other != rank]
        assert sorted(group.calls) == sorted([("recv", o) for o in others] + [("send", o) for o in others])
        firsts.append(next(other for kind, other in group.calls if kind == "send"))
    assert sorted(firsts) == list(range(world_size)), "no rank is everybody's first"


def test_the_limit_is_one_for_all_messages_together(monkeypatch):
    group = Recorder(seconds=2.0)
    monkeypatch.setattr(messages.time, "monotonic", lambda: group.clock[0])
    with pytest.raises(RuntimeError, match="Timed out"):
        Messages(group, 0, 5).gather(*room(5), 5.0, lambda: None)
    assert [work.limit for work in group.works[:3]] == [5.0, 3.0, 1.0]
    assert group.clock == [105.0]


def test_what_an_interrupt_has_left_is_waited_for_once():
    group = Recorder()
    gathers = Messages(group, 0, 3)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gathers.gather(*room(3), 5.0, interrupt)
    assert gathers.under_way
    assert not any(work.is_completed() for work in group.works)
    gathers.finish(5.0)
    assert not gathers.under_way
    assert all(work.is_completed() for work in group.works)


def test_an_interrupt_amid_the_preparations_leaves_none_of_them(monkeypatch):
    group = Recorder()
    gathers = Messages(group, 0, 2)
    old, new = room(2), room(2)
    gathers.gather(*old, 1.0, lambda: None)

    class Interrupting(Messages):
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "_posts":
                raise KeyboardInterrupt

    monkeypatch.setattr(gathers, "__class__", Interrupting)
    with pytest.raises(KeyboardInterrupt):
        gathers.gather(*new, 1.0, lambda: None)
    monkeypatch.undo()
    for sent, out in (old, new, old):
        sent += 1
        gathers.gather(sent, out, 1.0, lambda: None)
        assert torch.equal(out[0], sent)


def own_channel() -> channels.GroupChannel:
    dist.barrier()
    connect(ProcessContext.current(), OWN)
    return group_channel(None, OWN)


def gather_arrays(count: int, dtype: torch.dtype, often: int) -> list[np.ndarray]:
    channel, found = own_channel(), []
    kept = torch.zeros(count, dtype=dtype)
    for i in range(often):
        sent = kept if i % 2 else torch.zeros(count, dtype=dtype)  # the same memory again, and other memory
        sent.copy_(torch.arange(count) * (i + 1) + dist.get_rank() * 7)
        channel.begin()
        found.append(channel.all_gather(sent).numpy().copy())
    return found


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize(
    ("count", "dtype"),
    [
        (1, torch.int64),
        (1024, torch.int64),
        (130, torch.float64),
        (9, torch.uint8),
        (8192, torch.float64),  # the largest message
        (8193, torch.float64),  # gloo's own gather
        (0, torch.uint8),
    ],
)
def test_all_ranks_rows_come_in_rank_order(gloo, world_size, count, dtype):
    rows = [np.stack([np.arange(count) * (i + 1) + rank * 7 for rank in range(world_size)]) for i in range(4)]
    for found in gloo(world_size).run(gather_arrays, count, dtype, 4):
        for got, expected in zip(found, rows, strict=True):
            np.testing.assert_array_equal(got, expected.astype(got.dtype))


def gather_different_sizes(rank: int) -> str:
    channel = group_channel(None, 2.0)
    channel.begin()
    channel.all_gather(torch.zeros(3))
    channel.begin()
    try:
        channel.all_gather(torch.zeros(4 + rank))
    except MetricsError as error:
        return type(error).__name__
    return "nothing"


def test_different_sizes_end_in_an_error_and_in_no_abort():
    answers = run_disposable(2, gather_different_sizes)
    assert sorted(answers) == [0, 1]
    assert set(answers.values()) <= {"SyncTimeoutError", "RankFailureError"}


def gather_in_a_large_world(count: int) -> tuple[list[str], list[float]]:
    """Return what is called on the group, and what comes, where these are too many ranks for messages."""
    channel, calls = own_channel(), []
    run = channel._run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(channels, "_MOST_FOR_MESSAGES", 2)
        patch.setattr(channel, "_run", lambda name, *given: (calls.append(name), run(name, *given)))
        channel.begin()
        rows = channel.all_gather(torch.full((count,), float(dist.get_rank()), dtype=torch.float16))
    return calls, rows.sum(dim=1).tolist()


@pytest.mark.parametrize(("count", "way"), [(5, "alltoall_base"), (0, "alltoall_base"), (40000, "allgather")])
def test_large_worlds_and_large_gathers_leave_it_to_gloo(gloo, count, way):
    rows = torch.arange(3.0)[:, None].expand(3, count).half().sum(dim=1).tolist()
    assert gloo(3).run(gather_in_a_large_world, count) == [([way], rows)] * 3


@pytest.mark.parametrize(
    ("world_size", "size", "way"),
    [
        (2, 1 << 16, "messages"),
        (32, 8192, "messages"),
        (33, 8192, "all_to_all"),
        (16384, 512, "all_to_all"),
        (16384, 2048, "ring"),
        (2, (1 << 16) + 1, "ring"),
    ],
)
def test_the_way_follows_from_ranks_and_size_alone(world_size, size, way):
    assert channels.way_to_gather(world_size, size) == way


def outlive_a_rank(rank: int, patient: bool) -> tuple[str, tuple[int, ...]]:
    """Rank 1 ends, rank 0 waits for all, rank 2 comes later and keeps the error that it gets."""
    channel = group_channel(None, 2.0)
    channel.begin()
    channel.all_gather(torch.zeros(8))
    if rank == 1:
        os._exit(0)
    time.sleep(0.7 if rank == 2 else 0.0)
    channel.begin(patient=patient and rank == 0)
    try:
        channel.all_gather(torch.zeros(8))
    except MetricsError as error:
        kept.append(error)
        time.sleep(4.0)  # with the error, and so its frames, alive; rank 0 has the store that rank 2 asks
        return type(error).__name__, error.ranks
    return "nothing", ()


kept: list[BaseException] = []


@pytest.mark.parametrize("patient", [True, False])
def test_whoever_finds_a_rank_gone_ends_the_wait_of_the_others(patient):
    answers = run_disposable(3, outlive_a_rank, patient, timeout=30.0)
    assert answers == dict.fromkeys((0, 2), ("RankFailureError", (1,)))


def test_memory_that_cannot_be_sent_is_refused_each_time():
    gathers = Messages(Recorder(), 0, 2)
    memory = torch.ones(3, dtype=torch.bfloat16), torch.zeros((2, 3), dtype=torch.bfloat16)
    for _ in range(2):
        with pytest.raises(TypeError, match="BFloat16"):
            gathers.gather(*memory, 1.0, lambda: None)


def sync_after_an_interrupt(numbers: int) -> list[dict[str, float]]:
    """Interrupt rank 0 in the middle of its second sync, and go on."""
    collection = MetricCollection({f"m{i}": WeightedMean(f"m{i}") for i in range(numbers)}, sync_timeout=OWN)
    for metric in collection.values():
        metric.update(float(dist.get_rank()))
    channel = own_channel()
    results = [collection.compute()]
    post = channel.board.post
    if dist.get_rank() == 0:
        channel.board.post = interrupted
    try:
        results.append(collection.compute())
    except KeyboardInterrupt:
        results.append({})
    channel.board.post = post
    for metric in collection.values():
        metric.update(10.0)
    return [*results, collection.compute(), collection.compute()]


def interrupted() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("numbers", [3, 40])
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_go_on_after_one_was_interrupted_in_a_sync(gloo, world_size, numbers):
    mean = (world_size - 1) / 2
    first, later = ({f"m{i}": value for i in range(numbers)} for value in (mean, (mean + 10) / 2))
    for rank, results in enumerate(gloo(world_size).run(sync_after_an_interrupt, numbers)):
        assert results == [first, first if rank else {}, later, later]
