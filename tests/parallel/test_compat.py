"""Names of torch that are private, or newer than the oldest version claimed, are there and do their work."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from hjepa_dist_metrics.parallel import compat
from tests.helpers.processes import run_disposable


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


def test_autocast_of_any_device_is_seen():
    assert not compat.any_autocast()
    with torch.autocast("cpu"):
        assert compat.any_autocast()
    assert not compat.any_autocast()
