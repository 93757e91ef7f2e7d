"""Background syncs: in order, isolated, handed over, bounded."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time

import pytest
import torch
import torch.distributed as dist

from hjepa_dist_metrics import DesyncError, MetricCollection, ProcessContext, WeightedMean
from hjepa_dist_metrics.states import Sum
from hjepa_dist_metrics.sync import SyncHandle, SyncThread
from tests.sync.test_counts import Probe


def total(collection: MetricCollection) -> float:
    return collection.compute(lambda _, merged: merged["a"]["s"].value)


def total_async(collection: MetricCollection) -> SyncHandle[float]:
    return collection.compute_async(lambda _, merged: merged["a"]["s"].value)


def one(context: ProcessContext | None = None, timeout: float = 20.0) -> MetricCollection:
    return MetricCollection({"a": Probe("a", s=Sum())}, context=context, sync_timeout=timeout)


def snapshots() -> list[float]:
    collection = one()
    handles = []
    for step in range(6):
        collection["a"].states["s"].update(step)
        handles.append(total_async(collection))
    collection["a"].states["s"].update(1e6)
    return [handle.result(20) for handle in handles]


@pytest.mark.parametrize("world_size", [2, 4])
def test_several_in_flight_each_with_its_own_snapshot(gloo, world_size):
    expected = [world_size * step * (step + 1) / 2 for step in range(6)]
    assert gloo(world_size).run(snapshots) == [expected] * world_size


def uneven_timing(seed: int) -> list[float]:
    clock = random.Random(seed * 100 + dist.get_rank())
    collection, other = one(), one(timeout=19.0)
    results = []
    for step in range(20):
        collection["a"].states["s"].update(1)
        other["a"].states["s"].update(step)
        handle = total_async(collection)
        time.sleep(clock.random() * 0.01)
        if step % 3 == 0:
            results.append(total(other))
        if step % 5 == 0:
            results.append(handle.result(20))
    collection.close()
    return [*results, total(collection)]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_with_different_timing_stay_in_order(gloo, world_size):
    results = gloo(world_size).run(uneven_timing, 1)
    assert results == [results[0]] * world_size
    assert results[0][-1] == 20 * world_size


def groups() -> tuple[float, ...]:
    rank = dist.get_rank()
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    pair, world = one(ProcessContext.current(pairs[rank // 2])), one()
    pair["a"].states["s"].update(rank)
    world["a"].states["s"].update(rank)
    handles = [total_async(pair), total_async(world), total_async(pair)]
    return (total(world), *(handle.result(20) for handle in handles), total(pair))


def test_several_groups_share_the_thread(gloo):
    assert gloo(4).run(groups) == [(6, 1, 6, 1, 1)] * 2 + [(6, 5, 6, 5, 5)] * 2


def single_metric_behind_the_thread() -> tuple[float, float]:
    collection = one()
    collection["a"].states["s"].update(1)
    mean = WeightedMean("m")
    mean.update(float(dist.get_rank()), 1)
    handles = [total_async(collection) for _ in range(10)]
    value = float(mean.compute()["m"])
    assert all(handle.done() for handle in handles)
    return value, handles[-1].result()


def test_a_metric_on_its_own_waits_for_the_syncs_before_it(gloo):
    assert gloo(2).run(single_metric_behind_the_thread) == [(0.5, 2)] * 2


def unfetched_error() -> list[str]:
    collection = one()
    collection.resume_at(dist.get_rank())
    total_async(collection)
    seen = []
    for call in (collection.close, lambda: None):
        try:
            call()
        except DesyncError as error:
            seen.append(str(error))
    fetched = total_async(collection)
    with pytest.raises(DesyncError, match="sync numbers differ"):
        fetched.result(20)
    collection.raise_errors()
    collection.resume_at(0)
    total(collection)
    return seen


def test_an_error_that_nobody_fetched_comes_with_the_next_call(gloo):
    results = gloo(2).run(unfetched_error)
    assert len(results[0]) == 1
    assert results[0] == results[1]


def test_results_of_a_world_of_one_and_a_bad_formula():
    collection = one()
    collection["a"].states["s"].update(2.5)
    assert total_async(collection).result(20) == 2.5
    broken = collection.compute_async(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        broken.result(20)
    collection.close()


def test_waiting_for_a_result_is_bounded():
    thread, gate = SyncThread(), threading.Event()
    handle = SyncHandle(thread.submit(gate.wait))
    with pytest.raises(TimeoutError, match=r"still under way after 0\.01 s"):
        handle.result(0.01)
    assert not handle.seen
    assert not thread.drain(0.01)
    gate.set()
    assert handle.result(20)
    assert thread.drain(20)


def test_jobs_run_in_order_on_one_thread():
    thread, order = SyncThread(), []
    futures = [thread.submit(lambda i=i: order.append((i, threading.get_ident()))) for i in range(50)]
    futures[-1].result(20)
    assert [i for i, _ in order] == list(range(50))
    assert len({ident for _, ident in order}) == 1


def test_a_fork_starts_over_and_leaves_the_jobs_to_the_parent():
    thread, gate = SyncThread(), threading.Event()
    waiting = thread.submit(gate.wait)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            fresh = not thread.busy and thread.drain(0) and thread.submit(lambda: 7).result(10) == 7
            os.write(write, b"fresh" if fresh else b"stale")
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    gate.set()
    assert waiting.result(20)
    assert status == 0
    assert os.read(read, 5) == b"fresh"


def forked_sync() -> bytes:
    collection = one()
    total(collection)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            total(collection)
        except Exception as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    text = os.read(read, 200)
    return text if total(collection) == 0 else b"the parent broke"


def test_a_forked_process_is_told_that_it_is_no_rank(gloo):
    assert (
        gloo(2).run(forked_sync)
        == [b"ConfigError: a forked process is not a rank: sync metrics in the process that trains"] * 2
    )


def test_updates_after_the_snapshot_do_not_show_in_any_state():
    from tests.sync.test_counts import everything

    collection, still = MetricCollection(everything()), MetricCollection(everything())
    for metric in (*collection.values(), *still.values()):
        metric.update(1)
    gate = threading.Event()

    def hold(_, merged):
        gate.wait(20)
        return merged

    handle = collection.compute_async(hold)
    for metric in collection.values():
        metric.update(2)
    gate.set()
    merged = handle.result(20)
    for name, states in still.compute(lambda _, m: m).items():
        for key, state in states.items():
            for part, tensor in state.pack().items():
                assert torch.equal(tensor, merged[name][key].pack()[part])


def queue_behind_a_failure() -> list[str]:
    """Rank 1 has two syncs under way when the first fails; rank 0 has one and asks for no more."""
    rank = ProcessContext.current().rank
    collection = MetricCollection({"broken": WeightedMean("length")}, sync_timeout=20)
    if rank == 0:
        time.sleep(0.3)
    else:
        with contextlib.suppress(TypeError):
            collection["broken"].update("long")
    handles = [collection.compute_async() for _ in range(1 + rank)]
    errors = [str(handle._future.exception(10)) for handle in handles]
    with pytest.raises(DesyncError) as caught:
        collection.close()
    collection.reset()
    collection.close()
    assert collection.compute() == {}
    return [*errors, str(caught.value)]


def test_a_sync_behind_a_failed_one_fails_alike_and_waits_for_nobody(gloo):
    few, many = gloo(2).run(queue_behind_a_failure)
    assert len(many) == 3
    assert len({*few, *many}) == 1
    assert "rank 1" in few[0]
