"""A sync takes the same number of collectives for one metric and for two hundred."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist

from hjepa_dist_metrics import DistributedMetric, MetricCollection
from hjepa_dist_metrics.distributed.messages import Messages
from hjepa_dist_metrics.states import Concat, Covariance, Histogram, Max, Min, Moments, Sample, State, Sum
from hjepa_dist_metrics.sync import frame
from tests.ranks import ThreadWorld, run_ranks

# Of the groups themselves: whatever function of torch.distributed is called ends in one of them.
COLLECTIVES = ("allgather", "_allgather_base", "allreduce", "broadcast", "barrier", "gather", "alltoall")


class Probe(DistributedMetric):
    """Hold the given states and report nothing but that they were merged."""

    def __init__(self, name: str, **states: State) -> None:
        self.name = name
        for key, state in states.items():
            self.add_state(key, state)

    def update(self, seed: int) -> None:
        rows = torch.randn(5 + seed, 6, generator=torch.Generator().manual_seed(seed))
        for state in self.states.values():
            state.update(rows[:, 0] if isinstance(state, (Sum, Min, Max, Moments, Histogram)) else rows)

    def compute_from(self, states):
        return {self.name: float(len(states))}


def scalars(count: int) -> MetricCollection:
    return MetricCollection({f"m{i}": Probe(f"m{i}", a=Sum(), b=Max(), c=Moments()) for i in range(count)})


def everything() -> dict[str, DistributedMetric]:
    metrics = dict(scalars(20))
    for i in range(3):
        metrics[f"x{i}"] = Probe(
            f"x{i}",
            cov=Covariance(6),
            hist=Histogram.linear(-3, 3, 16),
            sample=Sample(300, 6, seed=i),
            concat=Concat(64, 6),
        )
    return metrics


def counted(metrics, context=None, rank=None) -> int:
    """Return how many collectives one compute calls, on groups and backends, with pickle out of order.

    A gather by messages is one: `tests/distributed/test_messages.py` counts what it sends.
    """
    collection = MetricCollection(metrics, context=context, sync_timeout=20)
    for metric in collection.values():
        metric.update(dist.get_rank() if rank is None else rank)
    collection.compute()  # connects
    calls: list[str] = []

    def counting(name, original):
        def call(*args, **kwargs):
            calls.append(name)
            return original(*args, **kwargs)

        return call

    def refuse(*args, **kwargs):
        raise AssertionError("pickled")

    with pytest.MonkeyPatch.context() as patch:
        for kind in (dist.ProcessGroup, dist.ProcessGroupGloo):
            for name in COLLECTIVES:
                if hasattr(kind, name):
                    patch.setattr(kind, name, counting(name, getattr(kind, name)))
        patch.setattr(Messages, "gather", counting("messages", Messages.gather))
        patch.setattr(pickle, "dumps", refuse)
        patch.setattr(pickle, "loads", refuse)
        collection.compute()
    report = collection.last_sync
    assert report is not None
    assert report.collectives == len(calls)
    return len(calls)


def count_scalars(count: int) -> int:
    return counted(scalars(count))


def count_everything() -> int:
    return counted(everything())


@pytest.mark.parametrize("world_size", [2, 4])
def test_one_metric_and_two_hundred_cost_the_same_over_gloo(gloo, world_size):
    one, hundred, most = (gloo(world_size).run(count_scalars, n) for n in (1, 100, 200))
    assert one == hundred == [1] * world_size
    assert max(most) <= 2


@pytest.mark.parametrize("world_size", [2, 4])
def test_all_kinds_of_states_need_four_at_most_over_gloo(gloo, world_size):
    assert gloo(world_size).run(count_everything) == [4] * world_size


def threads(world_size: int, make) -> ThreadWorld:
    world = ThreadWorld(world_size)

    def body(context):
        collection = MetricCollection(make(), context=context)
        for metric in collection.values():
            metric.update(context.rank)
        collection.compute()

    run_ranks(world_size, body, world)
    return world


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_one_metric_and_two_hundred_cost_the_same_over_threads(world_size):
    assert threads(world_size, lambda: scalars(1)).collectives == 1
    assert threads(world_size, lambda: scalars(200)).collectives <= 2
    assert threads(world_size, everything).collectives == 4


def test_a_world_of_one_needs_none():
    collection = scalars(3)
    collection.compute()
    assert collection.last_sync is not None
    assert collection.last_sync.collectives == 0


def test_off_cadence_nothing_is_sent():
    world = ThreadWorld(2)

    def body(context):
        collection = MetricCollection(dict(scalars(3)), context=context)
        for _ in range(5):
            for metric in collection.values():
                metric.update(context.rank)

    run_ranks(2, body, world)
    assert world.collectives == 0


@pytest.mark.parametrize("dim", [8, 64, 200])
def test_a_covariance_sends_its_triangle(dim):
    def make():
        return {"c": Probe("c", cov=Covariance(dim))}

    world = ThreadWorld(2)

    def body(context):
        collection = MetricCollection(make(), context=context)
        collection["c"].states["cov"].update(torch.randn(10, dim))
        collection.compute()

    run_ranks(2, body, world)
    triangle = dim * (dim + 1) // 2
    vectors = 2 * dim + 2  # the pivot with its two counts, and the sum about it
    assert world.bytes == frame.frame_bytes(2) + 8 * (triangle + vectors)


def test_the_payload_of_a_covariance_does_not_grow_with_its_rows():
    def size(rows):
        world = ThreadWorld(2)

        def body(context):
            collection = MetricCollection({"c": Probe("c", cov=Covariance(4))}, context=context)
            collection["c"].states["cov"].update(torch.randn(rows, 4))
            collection.compute()

        run_ranks(2, body, world)
        return world.bytes

    assert size(10) == size(10_000)


def test_rows_beyond_the_frame_go_in_a_second_collective_and_stay_exact():
    world = ThreadWorld(3)
    width = 3 * frame.frame_bytes(3) // 8 + 5

    def body(context):
        collection = MetricCollection({"m": Probe("m", wide=Sum(shape=(width,)))}, context=context)
        collection["m"].states["wide"].update(torch.arange(width) + context.rank)
        return collection.compute(lambda _, merged: merged["m"]["wide"].value)

    for value in run_ranks(3, body, world):
        np.testing.assert_array_equal(value, 3 * np.arange(width) + 3)
    assert world.collectives == 2


def test_the_frame_shrinks_in_large_worlds_and_stays_whole_words():
    sizes = [frame.frame_bytes(world) for world in (1, 2, 64, 100, 1000, 16384)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 8192
    assert sizes[-1] == 512
    assert all(size % 8 == 0 for size in sizes)


def merged_bits() -> bytes:
    collection = MetricCollection(everything(), sync_timeout=20)
    for metric in collection.values():
        metric.update(dist.get_rank())
    collected = collection.compute(lambda _, merged: merged)
    parts = [
        tensor.contiguous().numpy().tobytes()
        for states in collected.values()
        for state in states.values()
        for tensor in state.pack().values()
    ]
    return b"".join(parts)


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_rank_holds_the_same_bits_every_time(gloo, world_size):
    first, second = gloo(world_size).run(merged_bits), gloo(world_size).run(merged_bits)
    assert len(set(first + second)) == 1


def kept_results() -> tuple[list[float], list[list[float]]]:
    """Return what a sync brought and what its states hold after further syncs, in inference mode and out."""
    made = MetricCollection({f"m{i}": Probe(f"m{i}", s=Sum(), x=Max()) for i in range(3)}, sync_timeout=20)
    seen, kept = [], []
    for step in range(4):
        with torch.inference_mode(step % 2 == 0):
            for metric in made.values():
                for state in metric.states.values():
                    state.update(float(10**step * (1 + dist.get_rank())))
            merged = made.compute(lambda _, merged: dict(merged["m1"]))
            kept.append(merged)
            seen.append([merged["s"].value, merged["x"].value])
    return seen, [[merged["s"].data[0].item(), merged["x"].data[0].item()] for merged in kept]


def test_what_a_sync_brought_stays_when_the_next_ones_use_its_memory_again(gloo):
    expected = [[3.0, 2.0], [33.0, 20.0], [333.0, 200.0], [3333.0, 2000.0]]
    assert gloo(2).run(kept_results) == [(expected, expected)] * 2
