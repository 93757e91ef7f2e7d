"""What a sync costs, counted: rounds, messages, bytes, descriptors, and nothing at the job's store."""

from __future__ import annotations

import contextlib
import math
import os
import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist

from hjepa_dist_metrics import DistributedMetric, MetricCollection
from hjepa_dist_metrics.parallel.transport import MemoryWorld
from hjepa_dist_metrics.parallel.transport.channel import LEAST_FRAME
from hjepa_dist_metrics.states import Concat, Covariance, Histogram, Max, Min, Moments, Sample, State, Sum
from tests.helpers.processes import GlooPool, run_disposable
from tests.helpers.ranks import run_ranks


@pytest.fixture(scope="module")
def gloo():
    """Give worlds that nothing was synced in before: a group's frame keeps the size that it once needed."""
    pool = GlooPool()
    yield pool
    pool.close()


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


def depth(world: int) -> int:
    return math.ceil(math.log2(world)) if world > 1 else 0


class StoreTraffic:
    """Count what is written to the job's store."""

    names = ("set", "add", "compare_set", "multi_set", "append")

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.writes: list[str] = []
        for kind in (dist.Store, dist.PrefixStore, dist.TCPStore):
            for name in self.names:
                if name in vars(kind):
                    patch.setattr(kind, name, self.counting(name, getattr(kind, name)))

    def counting(self, name, original):
        def call(*args, **kwargs):
            self.writes.append(name)
            return original(*args, **kwargs)

        return call


def sockets() -> int:
    """Return how many descriptors of this process are sockets or belong to a poll."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return sum(link.startswith(("socket:", "anon_inode:")) for link in links)


def counted(metrics, world: int) -> tuple[int, int, int, int, int, list[str]]:
    """Return rounds, messages, bytes each way, descriptors and store writes of a compute, with no pickle."""
    before = sockets()
    collection = MetricCollection(metrics, sync_timeout=30)
    for metric in collection.values():
        metric.update(dist.get_rank())
    collection.compute()  # connects
    opened = sockets() - before
    if dist.get_rank() == 0:  # hosts the job's store, to which each rank has a connection of its own
        opened -= world

    def refuse(*args, **kwargs):
        raise AssertionError("pickled")

    with pytest.MonkeyPatch.context() as patch:
        store = StoreTraffic(patch)
        patch.setattr(pickle, "dumps", refuse)
        patch.setattr(pickle, "loads", refuse)
        collection.compute()
        report = collection.last_sync
    assert report is not None
    return (*report[:4], opened, store.writes)


def count_scalars(count: int, world: int):
    return counted(scalars(count), world)


def count_everything(world: int):
    return counted(everything(), world)


@pytest.mark.parametrize("world", [2, 3, 4, 5, 7, 8])
def test_one_metric_and_a_hundred_cost_the_same_rounds_and_nothing_at_the_store(gloo, world):
    one, many = (gloo(world).run(count_scalars, n, world) for n in (1, 60))
    for cost in (*one, *many):
        rounds, messages, sent, received, opened, writes = cost
        assert rounds <= depth(world) + 2
        assert messages == rounds
        assert max(sent, received) <= (depth(world) + 2) * LEAST_FRAME
        assert opened <= 2 * depth(world) + 6
        assert writes == []
    assert [cost[:4] for cost in one] == [cost[:4] for cost in many]


@pytest.mark.parametrize("world", [2, 4])
def test_all_kinds_of_states_take_a_second_message_a_round(gloo, world):
    for rounds, messages, *_, writes in gloo(world).run(count_everything, world):
        assert rounds == depth(world)
        assert messages <= 2 * rounds
        assert writes == []


def large(rank: int, world: int):
    return counted(scalars(60), world)


@pytest.mark.parametrize("world", [16, 32])
def test_many_real_ranks(world):
    results = run_disposable(world, large, world, timeout=250)
    assert len(results) == world
    for rounds, messages, sent, received, opened, writes in results.values():
        assert messages == rounds == depth(world)
        assert max(sent, received) <= (depth(world) + 2) * LEAST_FRAME
        assert opened <= 2 * depth(world) + 6
        assert writes == []


def threads(world_size: int, make) -> MemoryWorld:
    world = MemoryWorld(world_size)

    def body(context):
        collection = MetricCollection(make(), context=context)
        for metric in collection.values():
            metric.update(context.rank)
        collection.compute()

    run_ranks(world_size, body, world)
    return world


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_one_metric_and_two_hundred_cost_the_same_messages_over_threads(world_size):
    one, many = (threads(world_size, lambda n=n: scalars(n)) for n in (1, 60))
    assert (one.messages, one.bytes) == (many.messages, many.bytes)


def test_a_world_of_one_needs_none():
    collection = scalars(3)
    collection.compute()
    assert collection.last_sync is not None
    assert collection.last_sync[:4] == (0, 0, 0, 0)


def test_off_cadence_nothing_is_sent():
    world = MemoryWorld(2)

    def body(context):
        collection = MetricCollection(dict(scalars(3)), context=context)
        for _ in range(5):
            for metric in collection.values():
                metric.update(context.rank)

    run_ranks(2, body, world)
    assert world.messages == 0


def bytes_of(dim: int, rows: int) -> int:
    world = MemoryWorld(2)

    def body(context):
        collection = MetricCollection({"c": Probe("c", cov=Covariance(dim))}, context=context)
        collection["c"].states["cov"].update(torch.randn(rows, dim))
        collection.compute()

    run_ranks(2, body, world)
    return world.bytes


@pytest.mark.parametrize("dim", [64, 200])
def test_a_covariance_sends_its_triangle(dim):
    triangle = dim * (dim + 1) // 2
    numbers = triangle + dim + 2  # the mean, rows and nonfinite rows
    least = 2 * (LEAST_FRAME + 8 * numbers)
    assert least <= bytes_of(dim, 10) <= least + 2 * 256


def test_the_payload_of_a_covariance_does_not_grow_with_its_rows():
    assert bytes_of(100, 10) == bytes_of(100, 10_000)


def test_the_frame_grows_to_what_was_needed_and_stays_so():
    width = LEAST_FRAME // 8 + 5

    def body(context):
        collection = MetricCollection({"m": Probe("m", wide=Sum(shape=(width,)))}, context=context)
        costs = []
        for _ in range(3):
            collection["m"].states["wide"].update(torch.arange(width) + context.rank)
            value = collection.compute(lambda _, merged: merged["m"]["wide"].value)
            costs.append(collection.last_sync[1:4])
        np.testing.assert_array_equal(value, 3 * (2 * np.arange(width) + 1))
        return costs

    for first, *later in run_ranks(2, body):
        assert first == (2, LEAST_FRAME + 8 * width, LEAST_FRAME + 8 * width)
        assert later == [(1, 2 * LEAST_FRAME, 2 * LEAST_FRAME)] * 2


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
