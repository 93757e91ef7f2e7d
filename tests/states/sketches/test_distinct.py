import collections

import numpy as np
import pytest
import torch

from hjepa_dist_metrics import ConfigError, DistributedMetric, MetricCollection
from hjepa_dist_metrics.states import Distinct
from hjepa_dist_metrics.states.sketches.hashing import mix
from tests.helpers.ranks import run_ranks


class Counted(DistributedMetric):
    def __init__(self, capacity):
        self.add_state("seen", Distinct(capacity))

    def update(self, things, valid=None):
        self.seen.update(mix(things, seed=3), valid)

    def compute_from(self, states):
        seen = states["seen"]
        return {"total": seen.total, "distinct": seen.distinct, "collision": seen.collision}


def collision(things):
    counts = collections.Counter(things.tolist()).values()
    n = len(things)
    return sum(c * (c - 1) for c in counts) / (n * (n - 1))


@pytest.mark.parametrize("capacity", [8, 64])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_same_for_every_split(world_size, capacity):
    things = torch.from_numpy(np.random.default_rng(0).integers(0, 40, 200))
    shares = things.tensor_split([sorted([7, 150])[i] for i in range(world_size - 1)])

    def body(context):
        metric = Counted(capacity)
        for part in shares[context.rank].split(9):
            metric.update(part)
        values = MetricCollection({"m": metric}, context).compute()
        return {name: float(value) for name, value in values.items()}

    alone = Counted(capacity)
    alone.update(things)
    expected = {name: float(value) for name, value in alone.compute().items()}
    assert run_ranks(world_size, body) == [expected] * world_size
    if capacity == 64:
        assert expected == {
            "total": 200,
            "distinct": len(set(things.tolist())),
            "collision": pytest.approx(collision(things), rel=1e-12),
        }


def test_beyond_the_capacity_it_estimates():
    things = torch.from_numpy(np.random.default_rng(1).integers(0, 5000, 20000))
    state = Distinct(1024)
    state.update(mix(things, seed=0))
    assert not state.is_exact
    assert state.distinct == pytest.approx(len(set(things.tolist())), rel=0.1)
    assert state.collision == pytest.approx(collision(things), rel=0.1)


def test_merging_with_nothing_changes_nothing_and_inputs_stay():
    state, empty = Distinct(4), Distinct(4)
    state.update(torch.tensor([5, 5, 9, 1, 2, 3]))
    before = {name: tensor.clone() for name, tensor in state.pack().items()}
    for merged in (state.merge(empty), empty.merge(state)):
        assert all(torch.equal(merged.pack()[name], before[name]) for name in before)
    assert all(torch.equal(state.pack()[name], before[name]) for name in before)
    assert (empty.total, empty.distinct, empty.repeated, empty.collision) == (0, 0.0, 0.0, 0.0)


def test_repeats_and_collisions():
    state = Distinct(8)
    state.update(torch.tensor([4, 4, 4, 7]))
    state.update(torch.tensor([4, 8]), valid=torch.tensor([True, False]))
    assert (state.total, state.distinct) == (5, 2.0)
    assert state.repeated == pytest.approx(3 / 5)
    assert state.collision == pytest.approx(4 * 3 / (5 * 4))


def test_refuses_what_it_cannot_do():
    with pytest.raises(ConfigError, match="capacity of 2 or more"):
        Distinct(1)
    with pytest.raises(ConfigError, match="valid mask of shape"):
        Distinct(2).update(torch.tensor([1, 2]), valid=torch.tensor([True]))


@pytest.mark.parametrize("more", [0, 1])
def test_as_many_things_as_there_is_room_for_are_counted_exactly(more):
    state, keys = Distinct(64), mix(torch.arange(64 + more), seed=1)
    for _ in range(3):
        state.update(keys)
    assert state.is_exact == (more == 0)
    merged = state.merge(Distinct(64)).merge(state)
    assert merged.is_exact == (more == 0)
    if not more:
        assert (state.distinct, state.repeated) == (64.0, pytest.approx(2 / 3))
        assert state.collision == pytest.approx(64 * 3 * 2 / (192 * 191))
        assert (merged.distinct, merged.total) == (64.0, 384)
