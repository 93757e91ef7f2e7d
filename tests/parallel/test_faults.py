"""Ranks that come late, never, or die: the others learn who it was, in about `sync_timeout` seconds.

Every case runs in processes of its own. torch.distributed's default timeout stays at 30 minutes in them.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from hjepa_dist_metrics import (
    DistributedMetric,
    MetricCollection,
    MetricsError,
    RankFailureError,
    SyncTimeoutError,
)
from hjepa_dist_metrics.states import Concat, Sum
from hjepa_dist_metrics.sync.tree import steps
from tests.helpers.processes import run_disposable

TIMEOUT = 2.0
# Far above what a busy machine needs, far below 30 minutes.
SOON = 15.0


class Total(DistributedMetric):
    def __init__(self, capacity: int = 4) -> None:
        self.add_state("total", Sum())
        self.add_state("rows", Concat(capacity, 1))

    def update(self, value: float) -> None:
        self.total.update(value)

    def compute_from(self, states):
        return {"total": states["total"].value}


def collection() -> MetricCollection:
    made = MetricCollection({"total": Total()}, sync_timeout=TIMEOUT)
    made["total"].update(dist.get_rank() + 1)
    return made


def attempt(call) -> tuple[str, str, tuple[int, ...]]:
    """Return the error that a call raises: its type, text and ranks."""
    started = time.monotonic()
    try:
        call()
    except MetricsError as error:
        assert time.monotonic() - started < SOON
        return type(error).__name__, str(error), getattr(error, "ranks", ())
    return "none", "", ()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def never_arrives(rank: int, missing: int, syncs: int):
    metrics = collection()
    for _ in range(syncs):
        metrics.compute()
    if rank == missing:
        time.sleep(4 * TIMEOUT)
        return None
    first = attempt(metrics.compute)
    second = attempt(metrics.compute)
    return first, second


@pytest.mark.parametrize(("world_size", "missing", "syncs"), [(3, 1, 0), (3, 2, 3), (4, 3, 1), (4, 0, 2)])
def test_a_rank_that_never_arrives_is_named(world_size, missing, syncs):
    results = run_disposable(world_size, never_arrives, missing, syncs)
    errors = [results[rank] for rank in range(world_size) if rank != missing]
    for first, second in errors:
        kind, text, ranks = first
        assert kind == "SyncTimeoutError"
        assert ranks == (missing,)
        assert text.startswith(f"rank {missing} did not arrive at metrics sync {syncs + 1} within 2 s")
        assert (second[0], second[2]) == (kind, ranks)
        assert second[1].startswith(f"metrics of ranks {list(range(world_size))} cannot sync any more")
        assert f"since an earlier sync failed: {text}" in second[1]
        assert "torch.distributed.new_group() on all ranks" in second[1]
    assert len({first for first, _ in errors}) == 1


def late(rank: int):
    metrics = collection()
    values = [float(metrics.compute()["total"])]
    if rank == 2:
        time.sleep(TIMEOUT + 1.5)
    error = attempt(metrics.compute)
    total = torch.ones(1)
    dist.all_reduce(total)
    return values, error, total.item()


@pytest.mark.parametrize("world_size", [3, 4])
def test_a_late_rank_gets_the_same_error_and_the_training_group_lives_on(world_size):
    results = run_disposable(world_size, late)
    assert len(results) == world_size
    for values, (kind, text, ranks), total in results.values():
        assert values == [sum(range(1, world_size + 1))]
        assert (kind, ranks) == ("SyncTimeoutError", (2,))
        assert text == results[0][1][1]
        assert total == world_size


def killed_before(rank: int, victim: int):
    metrics = collection()
    metrics.compute()
    if rank == victim:
        die()
    time.sleep(0.3)
    return attempt(metrics.compute)


@pytest.mark.parametrize(("world_size", "victim"), [(3, 1), (3, 2), (4, 2)])
def test_a_rank_killed_before_a_sync_is_named(world_size, victim):
    results = run_disposable(world_size, killed_before, victim)
    assert len(results) == world_size - 1
    for kind, text, ranks in results.values():
        assert (kind, ranks) == ("RankFailureError", (victim,))
        assert text.startswith(f"rank {victim} ended before metrics sync 2")


def act_in_round(rank: int, victim: int, at: int, action: str, patient: bool = False):
    """Sync twice; the victim dies, stops or sleeps before its message number `at` of the second sync."""
    from hjepa_dist_metrics.parallel.transport.tree_channel import TreeChannel

    metrics = collection()
    first = float(metrics.compute()["total"])
    if rank == victim:
        original, calls = TreeChannel.exchange, itertools.count()

        def exchange(self, *request):
            if next(calls) == at:
                if action == "kill":
                    die()
                elif action == "stop":
                    os.kill(os.getpid(), signal.SIGSTOP)
                else:
                    time.sleep(TIMEOUT + 1.5)
            return original(self, *request)

        TreeChannel.exchange = exchange
    outcomes = []
    for _ in range(3):
        outcomes.append(attempt(lambda: outcomes.append(float(metrics.compute()["total"]))))
        if outcomes[-1][0] != "none":
            break
    values = [outcome for outcome in outcomes if isinstance(outcome, float)]
    if rank == 0 and action == "late":
        time.sleep(TIMEOUT + 1.5)  # it hosts the store, and the late rank has yet to come
    return first, values, outcomes[-1]


ROUNDS = [
    (world, victim, at)
    for world in (2, 3, 4, 8)
    for victim in range(1, world)
    for at, _ in enumerate(steps(victim, world))
    if world < 8 or victim == 1 + 2 * at  # of eight ranks, another one in each round
]


@pytest.mark.parametrize("action", ["kill", "stop", "late"])
@pytest.mark.parametrize(("world", "victim", "at"), ROUNDS)
def test_a_rank_that_fails_in_any_round_is_named_by_all_others(world, victim, at, action):
    results = run_disposable(
        world, act_in_round, victim, at, action, leave={victim} if action == "stop" else set()
    )
    survivors = set(range(world)) - ({victim} if action != "late" else set())
    assert set(results) == survivors
    texts = set()
    total = sum(range(1, world + 1))
    for rank in survivors:
        first, values, (kind, text, ranks) = results[rank]
        assert first == total
        assert set(values) <= {total}  # whoever completed the sync has the right number
        assert kind == ("RankFailureError" if action == "kill" else "SyncTimeoutError"), text
        assert ranks == (victim,), text
        texts.add(text.split("since an earlier sync failed: ")[-1].split(". A new process group")[0])
    assert len(texts) == 1, texts


def stopped_in_the_background(rank: int, victim: int):
    metrics = collection()
    metrics.compute()
    if rank == victim:
        os.kill(os.getpid(), signal.SIGSTOP)
    handle = metrics.compute_async()
    return attempt(lambda: handle.result(4 * SOON))


@pytest.mark.parametrize("victim", [0, 1, 2, 3])
def test_a_stopped_rank_is_named_in_the_background(victim):
    results = run_disposable(4, stopped_in_the_background, victim, leave={victim})
    assert set(results) == {0, 1, 2, 3} - {victim}
    for kind, text, ranks in results.values():
        assert ranks == (victim,), text
        if victim:  # rank 0 is the store's host: nobody can say for whom it waits
            assert kind == "SyncTimeoutError"
            assert text.startswith(f"rank {victim} did not arrive at metrics sync 2 within 2 s")


def killed_mid_transfer(rank: int, victim: int):
    metrics = MetricCollection({"total": Total(1 << 24)}, sync_timeout=TIMEOUT)
    metrics.compute()
    metrics["total"].rows.update(torch.zeros(1 << 22, 1))
    if rank == victim:
        threading.Timer(0.02, die).start()
    return attempt(lambda: [metrics.compute() for _ in range(50)])


def test_a_rank_killed_while_bytes_are_on_their_way_is_named():
    results = run_disposable(3, killed_mid_transfer, 1)
    assert sorted(results) == [0, 2]
    for kind, _, ranks in results.values():
        assert kind == "RankFailureError"
        assert 1 in ranks


@pytest.mark.parametrize("world_size", [3, 4])
def test_the_death_of_the_rank_that_hosts_the_store_is_an_error(world_size):
    results = run_disposable(world_size, killed_before, 0)
    assert len(results) == world_size - 1
    for kind, text, ranks in results.values():
        assert (kind, ranks) == ("RankFailureError", (0,))
        assert "key-value store does not answer" in text
        assert "the process that hosts it, rank 0, is gone" in text


def restarted(_: int, rank: int, port: int, attempt_number: int):
    """Join a job whose store is not a rank's and outlives it, under a prefix for each attempt."""
    dist.destroy_process_group()  # the world of one in which this process was started
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    prefixed = dist.PrefixStore(f"attempt {attempt_number}", store)
    dist.init_process_group("gloo", store=prefixed, rank=rank, world_size=2)
    if attempt_number == 0 and rank == 1:
        die()  # before its channel is open, while rank 0's is
    metrics = collection()
    error = attempt(metrics.compute)
    return float(metrics.compute()["total"]) if error[0] == "none" else error


def run_attempt(port: int, number: int) -> dict[int, Any]:
    """Start both ranks of an attempt, each in a world of its own; return what they answered."""
    with ThreadPoolExecutor(2) as pool:
        ranks = [pool.submit(run_disposable, 1, restarted, rank, port, number) for rank in range(2)]
        return {rank: done.result().get(0) for rank, done in enumerate(ranks)}


def test_a_job_restarted_on_a_store_that_outlives_it_syncs_again():
    outlives = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    first = run_attempt(outlives.port, 0)
    kind, _, ranks = first[0]
    assert (first[1], ranks) == (None, (1,))
    assert kind in ("SyncTimeoutError", "RankFailureError")
    for number in (1, 2):
        assert run_attempt(outlives.port, number) == {0: 3.0, 1: 3.0}


def exits_early(rank: int):
    metrics = collection()
    metrics.compute()
    return None if rank == 1 else attempt(metrics.compute)


def test_a_rank_that_exits_early_is_named():
    results = run_disposable(3, exits_early)
    for rank in (0, 2):
        kind, text, ranks = results[rank]
        assert (kind, ranks) == ("RankFailureError", (1,))
        assert "finished early" in text


def other_collective(rank: int):
    metrics = collection()
    metrics.compute()
    shared = torch.full((8,), float(rank))
    if rank == 1:  # sums gradients while the others sync metrics
        dist.all_reduce(shared)
        return None, shared.tolist()
    error = attempt(metrics.compute)
    dist.all_reduce(shared)
    return error, shared.tolist()


def test_a_rank_in_another_collective_is_named_and_that_collective_is_right():
    results = run_disposable(3, other_collective)
    assert [values for _, values in results.values()] == [[3.0] * 8] * 3
    for rank in (0, 2):
        assert results[rank][0][0] == "SyncTimeoutError"
        assert results[rank][0][2] == (1,)


def background(rank: int, victim: int):
    metrics = collection()
    metrics.compute()
    if rank == victim:
        die()
    handle = metrics.compute_async()
    fetched = attempt(lambda: handle.result(SOON))
    unfetched = metrics.compute_async
    return fetched, attempt(lambda: [unfetched(), time.sleep(0.1), unfetched(), metrics.close(SOON)])


def test_a_background_sync_hands_the_error_over():
    results = run_disposable(3, background, 1)
    for fetched, next_call in results.values():
        assert fetched[0] == next_call[0] == "RankFailureError"
        assert fetched[2] == next_call[2] == (1,)


def group_made_anew(rank: int, port: int):
    metrics = collection()
    if rank == 2:
        time.sleep(TIMEOUT + 1)
    error = attempt(metrics.compute)
    again = dist.new_group()
    from hjepa_dist_metrics import ProcessContext

    fresh = MetricCollection({"total": Total()}, context=ProcessContext.current(again), sync_timeout=10)
    fresh["total"].update(rank)
    return error[0], float(fresh.compute()["total"])


def test_a_new_process_group_brings_metrics_back():
    results = run_disposable(3, group_made_anew, 0)
    assert list(results.values()) == [("SyncTimeoutError", 3.0)] * 3


EXIT = """
import os, sys, time, torch.distributed as dist
from tests.parallel.test_faults import collection, die
from tests.helpers.processes import join_world
rank, port, way = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
join_world(rank, 2, port)
metrics = collection()
metrics.compute()
if rank == 1:
    if way == "killed":
        die()
    time.sleep(6)
    os._exit(0)
time.sleep(0.5)
metrics.compute_async()
print("leaving", flush=True)
"""


@pytest.mark.parametrize("way", ["killed", "late"])
def test_the_interpreter_exits_while_a_sync_waits_for_a_rank(way):
    from tests.helpers.processes import free_port

    root = Path(__file__).resolve().parents[2]
    port = free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", EXIT, str(rank), str(port), way], cwd=root, stdout=subprocess.PIPE
        )
        for rank in range(2)
    ]
    try:
        out, _ = ranks[0].communicate(timeout=60)
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
    assert out.split() == [b"leaving"]
    assert ranks[0].returncode == 0


def first_sync_after_the_host_ended(rank: int):
    metrics = collection()
    if rank == 0:
        return attempt(metrics.compute)
    time.sleep(TIMEOUT + 2.5)  # by now rank 0, which hosts the store, has given up and ended
    started = time.monotonic()
    error = attempt(metrics.compute)
    return error, time.monotonic() - started


def test_the_first_sync_of_a_late_rank_does_not_outlast_its_timeout_where_the_host_has_ended():
    results = run_disposable(2, first_sync_after_the_host_ended)
    assert results[0][0] == "SyncTimeoutError"
    (kind, text, _), seconds = results[1]
    assert kind == "RankFailureError"
    assert "store does not answer" in text
    assert seconds < TIMEOUT + 1.0


def test_errors_have_the_types_that_users_catch():
    assert issubclass(SyncTimeoutError, TimeoutError)
    assert issubclass(RankFailureError, RuntimeError)
