"""Mean: two sums that merge by adding, from Python numbers and from tensors alike."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given

from hjepa_dist_metrics import ConfigError
from hjepa_dist_metrics.states import Mean
from tests.helpers.splits import merged_over, splits, total

VALUES = np.random.default_rng(0).normal(size=200)
COUNTS = np.random.default_rng(1).integers(0, 9, size=200)


@given(splits())
def test_any_split_gives_the_weighted_mean_of_all(split):
    def feed(state, piece):
        for value, count in zip(VALUES[piece], COUNTS[piece], strict=True):
            state.update(float(value), int(count))

    merged = merged_over(split, Mean, feed)
    n = total(split)
    assert merged.count == COUNTS[:n].sum()
    assert merged.total == pytest.approx(float(VALUES[:n] @ COUNTS[:n]), rel=1e-12, abs=1e-12)
    if merged.count:
        assert merged.value == pytest.approx(float(np.average(VALUES[:n], weights=COUNTS[:n])), rel=1e-9)
    else:
        assert math.isnan(merged.value)


@pytest.mark.parametrize("value", [2.5, np.float32(2.5), torch.tensor(2.5), torch.tensor([2.5]).half()])
@pytest.mark.parametrize("count", [4, 4.0, np.int64(4), torch.tensor(4), torch.tensor([4.0])])
def test_numbers_of_all_kinds_count_alike(value, count):
    mean = Mean()
    mean.update(value, count)
    mean.update(value, count)
    assert (mean.total, mean.count, mean.value) == (20.0, 8.0, 2.5)
    assert mean.data.dtype == torch.float64


@pytest.mark.parametrize("nothing", [0, torch.tensor(0)])
@pytest.mark.parametrize("value", [math.nan, torch.tensor(math.nan)])
def test_a_mean_over_nothing_adds_nothing_and_any_other_nan_shows(value, nothing):
    mean = Mean()
    mean.update(1.0, 2)
    mean.update(value, nothing)
    assert (mean.total, mean.count) == (2.0, 2.0)
    mean.update(value, 1)
    assert math.isnan(mean.value)
    assert mean.count == 3.0


def test_more_than_one_number_is_refused():
    with pytest.raises(ConfigError, match=r"expected one number and its count, got shapes \[2\] and \[\]"):
        Mean().update(torch.ones(2), 3)
