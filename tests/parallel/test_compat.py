"""Names of torch that are private, or newer than the oldest version claimed, are there and do their work."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from hjepa_dist_metrics.parallel import compat
from tests.helpers.processes import run_disposable


def test_what_ddp_is_set_to_ignore():
    module = torch.nn.BatchNorm1d(2)
    assert list(compat.ignored_by_ddp(module)) == []
    ddp = torch.nn.parallel.DistributedDataParallel
    ddp._set_params_and_buffers_to_ignore_for_model(module, ["bias", "running_mean"])
    assert set(compat.ignored_by_ddp(module)) == {"bias", "running_mean"}


def test_a_backward_pass_is_noticed():
    seen = []
    x = torch.ones(1, requires_grad=True)
    x.register_hook(lambda grad: seen.append(compat.in_backward()))
    x.sum().backward()
    assert [*seen, compat.in_backward()] == [True, False]


def pair(rank: int) -> list[float]:
    store = compat.prefixed("pair", compat.job_store())
    group = compat.pair_group(store, rank, 20.0)
    room, sent = torch.zeros(2), torch.full((2,), 1.0 + rank)
    works = [group.recv([room], 1 - rank, 8), group.send([sent], 1 - rank, 8)]
    for work in works:
        work.wait(timedelta(seconds=20))
    return room.tolist()


def test_a_group_of_two_carries_messages():
    assert run_disposable(2, pair) == {0: [2.0, 2.0], 1: [1.0, 1.0]}


def stores(rank: int) -> tuple[bool, bytes, bool]:
    job = compat.job_store()
    own = compat.own_connection(job, 5.0)
    own.set(f"from {rank}", str(rank))
    read = job.get(f"from {1 - rank}")
    hosts = compat.hosts_store(job)
    own.set(f"done {rank}", "")
    if hosts:
        job.wait(["done 1"])  # the store ends with the process that hosts it
    return hosts, read, isinstance(compat.underlying(job), dist.TCPStore)


def test_an_own_connection_reads_what_the_job_writes_and_the_host_is_known():
    assert run_disposable(2, stores) == {0: (True, b"1", True), 1: (False, b"0", True)}


def test_the_device_is_made_on_the_named_interface(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo,eth9")
    compat._device.cache_clear()
    assert compat._device(os.getpid()) is compat._device(os.getpid())
    compat._device.cache_clear()


def reducer_times(rank: int) -> tuple[bool, int]:
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))
    before = compat.ddp_times(model)
    compat.sample_ddp_times(model, every=True)
    for _ in range(13):  # by itself the reducer measures the first ten, and one in a hundred
        model(torch.ones(2, 4)).sum().backward()
    times = compat.ddp_times(model)
    assert times is not None
    assert times.communication >= times.overlap >= 0
    return before is None, times.iteration


def test_the_reducer_measures_its_backward():
    assert run_disposable(2, reducer_times) == {0: (True, 12), 1: (True, 12)}


def test_autocast_of_any_device_is_seen():
    assert not compat.any_autocast()
    with torch.autocast("cpu"):
        assert compat.any_autocast()
    assert not compat.any_autocast()
