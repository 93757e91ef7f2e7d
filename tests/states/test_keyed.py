"""Sums by key: the same bits for any split, keys anywhere, values without a key on their own."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from hjepa_dist_metrics import ConfigError
from hjepa_dist_metrics.states import GroupSums
from hjepa_dist_metrics.states.keyed import ALONE
from tests.helpers.splits import bits

ROWS = st.lists(
    st.tuples(
        st.floats(-200, 200),
        st.one_of(st.none(), st.integers(-3, 3), st.sampled_from([2**62, -(2**62)])),
        st.booleans(),
    ),
    max_size=30,
)


def fed(rows):
    """Return sums that have seen rows of (value, key or None, valid), one update each."""
    state = GroupSums()
    for value, key, valid in rows:
        keys = None if key is None else torch.tensor([key])
        state.update(torch.tensor([value], dtype=torch.float64), keys, torch.tensor([valid]))
    return state


@given(rows=ROWS, cuts=st.lists(st.integers(0, 30), max_size=3), seed=st.integers(0, 9))
def test_any_split_in_any_order_has_the_same_bits(rows, cuts, seed):
    whole = fed(rows).pack()
    order = np.random.default_rng(seed).permutation(len(rows))
    bounds = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    merged = GroupSums()
    for start, stop in pairwise(bounds):
        merged = merged.merge(fed([rows[i] for i in order[start:stop]]))
    assert {name: bits(tensor) for name, tensor in merged.pack().items()} == {
        name: bits(tensor) for name, tensor in whole.items()
    }


@given(rows=ROWS)
def test_sums_and_counts_are_pythons(rows):
    expected: dict[int, list[float]] = {}
    alone = []
    for value, key, valid in rows:
        if valid and key is None:
            alone.append(value)
        elif valid:
            expected.setdefault(key, []).append(value)
    state = fed(rows)
    assert state.keys.tolist() == [ALONE] * len(alone) + sorted(expected)
    assert state.counts.tolist() == [1] * len(alone) + [len(expected[key]) for key in sorted(expected)]
    sums = [*sorted(alone), *(sum(expected[key]) for key in sorted(expected))]
    np.testing.assert_allclose(state.sums, sums, atol=1e-15 * 200 * (1 + len(rows)), rtol=1e-14)


def test_nan_stays_in_its_group():
    state = GroupSums()
    state.update(torch.tensor([1.0, float("nan"), 2.0]), torch.tensor([5, 7, 5]))
    assert state.sums[0] == 3.0
    assert state.sums[1].isnan()


def test_updates_in_between_reading_are_kept():
    state = GroupSums()
    state.update([1.0], torch.tensor([4]))
    assert state.sums.tolist() == [1.0]
    state.update([2.0, 5.0], torch.tensor([4, 3]))
    assert (state.keys.tolist(), state.sums.tolist(), state.counts.tolist()) == ([3, 4], [5.0, 3.0], [1, 2])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (torch.tensor([1.0, 2.0]), "keys must be integers, got torch.float32"),
        (torch.tensor([True, False]), "keys must be integers, got torch.bool"),
        (torch.tensor([1]), "a key for each of 2 values, got 1"),
    ],
)
def test_bad_keys_say_what_is_wrong(keys, message):
    with pytest.raises(ConfigError, match=message):
        GroupSums().update(torch.zeros(2), keys)
