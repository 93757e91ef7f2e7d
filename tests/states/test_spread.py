"""Pieces add up, wholes count once, silent ranks do not count, and the latest replaces the earlier."""

import math

import numpy as np
import pytest
import torch

from hjepa_dist_metrics.states.by_rank import ByRank
from hjepa_dist_metrics.states.spread import (
    PIECE,
    SILENT,
    WHOLE,
    SpreadCounts,
    SpreadMax,
    SpreadMin,
    SpreadSum,
)

# column 0 is whole on every rank, column 1 in two pieces with a silent copy on rank 2, column 2 on rank 1
ROLES = [torch.tensor(r) for r in ([WHOLE, PIECE, SILENT], [WHOLE, PIECE, PIECE], [WHOLE, SILENT, SILENT])]
VALUES = [torch.tensor([5.0, 1.0, 7.0]), torch.tensor([5.0, 2.0, -3.0]), torch.tensor([5.0, 2.0, 9.0])]


@pytest.mark.parametrize(
    ("kind", "expected"), [(SpreadSum, [5, 3, -3]), (SpreadMax, [5, 2, -3]), (SpreadMin, [5, 1, -3])]
)
def test_roles(kind, expected):
    states = []
    for values, roles in zip(VALUES, ROLES, strict=True):
        state = kind(shape=(3,))
        state.update(values, roles)
        states.append(state)
    merged = kind.merge_rows(torch.stack([state.rows() for state in states]))
    assert merged[0].tolist() == expected
    alone = kind(shape=(3,)).merge(states[1]).value.tolist()
    assert [alone[0], alone[2]] == [5.0, -3.0]


def test_the_latest_replaces_the_earlier_and_an_empty_state_changes_nothing():
    first, second = SpreadMax(shape=(2,)), SpreadMax(shape=(2,))
    first.update(torch.tensor([3.0, 4.0]), torch.tensor([PIECE, PIECE]))
    second.update(torch.tensor([1.0, 9.0]), torch.tensor([PIECE, SILENT]))
    assert first.merge(second).value.tolist() == [1.0, 4.0]
    assert first.merge(first.empty()).value.tolist() == [3.0, 4.0]
    assert not first.empty().known
    assert first.known


def test_wholes_must_agree_where_they_are_exact():
    rows = torch.tensor([[[1.0], [0.0], [1.0]], [[1.1], [0.0], [1.0]], [[math.nan], [0.0], [0.0]]]).double()
    assert SpreadMax.conflicts(rows).tolist() == [[False], [True], [False]]
    assert SpreadSum.conflicts(rows) is None


def test_counts_of_wholes_come_once():
    states = []
    for roles in ([WHOLE, PIECE], [WHOLE, PIECE], [WHOLE, SILENT]):
        state = SpreadCounts(2, 3)
        state.update(torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor(roles))
        states.append(state)
    total = sum(state.summed(0, torch.zeros(0)) for state in states)
    merged = states[0].assemble(torch.zeros(0), total, torch.zeros(0))
    assert merged.counts.tolist() == [[1, 2, 3], [8, 10, 12]]
    assert merged.known
    assert states[0].merge(states[0].empty()).counts.tolist() == states[0].counts.tolist()
    assert not states[0].empty().known


def test_rows_by_rank_stay_apart():
    mine, other = ByRank(2), ByRank(2)
    mine.update([1.0, 2.0])
    merged = mine.assemble(torch.stack([mine.rows(), other.rows()]), torch.zeros(0), torch.zeros(0))
    np.testing.assert_array_equal(merged.table, [[1.0, 2.0], [np.nan, np.nan]])
    assert merged.rows().isnan().all()
    assert mine.merge(other).table.tolist() == [[1.0, 2.0]]
