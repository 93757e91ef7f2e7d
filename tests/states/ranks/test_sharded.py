"""Shards add up, copies count once, non-owners do not count, and the latest replaces the earlier."""

import functools
import math

import numpy as np
import pytest
import torch

from hjepa_dist_metrics.states import RankTable, ShardedCounts, ShardedMax, ShardedMin, ShardedSum
from hjepa_dist_metrics.states.ranks.sharded import NON_OWNER, REPLICATED, SHARD

# column 0 is whole on every rank, column 1 in two shards with a copy on rank 2 that does not count, column 2
# on rank 1
ROLES = [
    torch.tensor(r)
    for r in (
        [REPLICATED, SHARD, NON_OWNER],
        [REPLICATED, SHARD, SHARD],
        [REPLICATED, NON_OWNER, NON_OWNER],
    )
]
VALUES = [torch.tensor([5.0, 1.0, 7.0]), torch.tensor([5.0, 2.0, -3.0]), torch.tensor([5.0, 2.0, 9.0])]


def over_ranks(states):
    """Merge the states of as many ranks."""
    return functools.reduce(lambda a, b: a.merge(b), [s.signed(rank, 0) for rank, s in enumerate(states)])


@pytest.mark.parametrize(
    ("kind", "expected"), [(ShardedSum, [5, 3, -3]), (ShardedMax, [5, 2, -3]), (ShardedMin, [5, 1, -3])]
)
def test_roles(kind, expected):
    states = []
    for values, roles in zip(VALUES, ROLES, strict=True):
        state = kind(shape=(3,))
        state.update(values, roles)
        states.append(state)
    merged = over_ranks(states)
    assert merged.value.tolist() == expected
    assert kind.conflicts(merged.data) is None or not kind.conflicts(merged.data).any()
    alone = kind(shape=(3,)).merge(states[1]).value.tolist()
    assert [alone[0], alone[2]] == [5.0, -3.0]
    resumed = states[0].unpack(merged.pack())
    assert resumed.merge(states[1]).value.tolist() == [5.0, 2.0, -3.0]


def test_the_latest_replaces_the_earlier_and_an_empty_state_changes_nothing():
    first, second = ShardedMax(shape=(2,)), ShardedMax(shape=(2,))
    first.update(torch.tensor([3.0, 4.0]), torch.tensor([SHARD, SHARD]))
    second.update(torch.tensor([1.0, 9.0]), torch.tensor([SHARD, NON_OWNER]))
    assert first.merge(second).value.tolist() == [1.0, 4.0]
    assert first.merge(first.empty()).value.tolist() == [3.0, 4.0]
    assert not first.empty().known
    assert first.known


@pytest.mark.parametrize("kind", [ShardedMax, ShardedMin, ShardedSum])
def test_copies_must_agree_where_they_are_exact(kind):
    states = [kind(), kind(), kind(), kind()]
    for state, value in zip(states, (1.0, 1.0 + 1e-7, 1.1), strict=False):
        state.update(torch.tensor([value]), torch.tensor([REPLICATED]))
    merged = over_ranks(states)
    if kind is ShardedSum:
        assert kind.conflicts(merged.data) is None
    else:
        assert kind.conflicts(merged.data).tolist() == [True]
        assert kind.contradiction(merged.data[:, 0]) == "1 on rank 0, 1.10000002 on rank 2"
        assert not kind.conflicts(over_ranks(states[:2]).data).any()


def test_nan_agrees_with_nan_alone():
    states = [ShardedMax(), ShardedMax()]
    for state in states:
        state.update(torch.tensor([math.nan]), torch.tensor([REPLICATED]))
    assert not ShardedMax.conflicts(over_ranks(states).data).any()
    states[1].update(torch.tensor([1.0]), torch.tensor([REPLICATED]))
    assert ShardedMax.conflicts(over_ranks(states).data).any()


def test_counts_of_copies_come_once():
    states = []
    for roles in ([REPLICATED, SHARD], [REPLICATED, SHARD], [REPLICATED, NON_OWNER]):
        state = ShardedCounts(2, 3)
        state.update(torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor(roles))
        states.append(state)
    merged = over_ranks(states)
    assert merged.counts.tolist() == [[1, 2, 3], [8, 10, 12]]
    assert merged.known
    assert states[0].merge(states[0].empty()).counts.tolist() == states[0].counts.tolist()
    assert states[0].merge(states[1]).counts.tolist() == states[1].counts.tolist()
    assert not states[0].empty().known


def test_rows_by_rank_stay_apart():
    mine, other = RankTable(2), RankTable(2)
    mine.update([1.0, 2.0])
    merged = over_ranks([mine, other])
    np.testing.assert_array_equal(merged.table, [[1.0, 2.0], [np.nan, np.nan]])
    assert merged.ranks.tolist() == [0, 1]
    assert np.isnan(merged.unpack(merged.pack()).table).all()
    assert mine.merge(other).table.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("world", [7, 12, 40])
def test_a_table_of_many_ranks_keeps_the_largest_and_sums_up_the_rest(world):
    numbers = np.random.default_rng(world).random((world, 3))
    states = []
    for row in numbers:
        state = RankTable(3, most=8, kept=4)
        state.update(row.tolist())
        states.append(state)
    merged = over_ranks(states)
    if world <= 8:
        np.testing.assert_array_equal(merged.table, numbers)
        assert merged.rest[0].tolist() == [0.0] * 3
        return
    largest = np.sort(np.argsort(-numbers.sum(axis=1))[:4])
    assert merged.ranks.tolist() == largest.tolist()
    np.testing.assert_array_equal(merged.table, numbers[largest])
    others = np.delete(numbers, largest, axis=0)
    expected = [np.full(3, world - 4), others.sum(axis=0), others.min(axis=0), others.max(axis=0)]
    np.testing.assert_allclose(merged.rest, expected, rtol=1e-12)
