"""States of layers: kurtosis against SciPy at any scale and offset, ranges of units, blocks by name."""

import numpy as np
import pytest
import torch
from scipy import stats

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.states import FourthMoments, NamedRows, Sum, UnitRanges


def values(count=400, seed=0):
    return np.random.default_rng(seed).standard_t(5, size=count)


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1e150, 0), (1e-150, 0), (1, 1e6), (1e-3, -40.0)])
@pytest.mark.parametrize("cuts", [[], [1], [1, 2, 399], [100, 100, 250]])
def test_fourth_moments_are_scipys_for_every_split(scale, offset, cuts):
    x = values() * scale + offset
    state = FourthMoments()
    for part in np.split(x, cuts):
        fresh = FourthMoments()
        fresh.update(torch.from_numpy(part))
        state = state.merge(fresh)
    z = (x - offset) / scale
    assert state.kurtosis == pytest.approx(stats.kurtosis(z, fisher=False), rel=1e-6)
    assert state.skewness == pytest.approx(stats.skew(z), rel=1e-6)
    assert state.std == pytest.approx(z.std() * scale, rel=1e-6)
    assert state.count == len(x)


def test_values_that_are_all_the_same_have_no_kurtosis_and_nan_has_none_either():
    state = FourthMoments()
    state.update(torch.full((7,), 3.3))
    assert (state.mean, state.std) == (pytest.approx(3.3), 0.0)
    assert np.isnan(state.kurtosis)
    state.update(torch.tensor([1.0, float("inf")]))
    assert state.nonfinite == 1
    assert np.isnan(state.kurtosis)
    assert np.isnan(state.mean)


def test_ranges_of_units_are_numpys():
    rows = torch.randn(50, 3, dtype=torch.float64) * torch.tensor([1.0, 1e200, 0.0])
    state = UnitRanges((3,))
    for part in rows.split([1, 20, 29]):
        state.update(part)
    array = rows.numpy()
    np.testing.assert_allclose(state.rms / [1, 1e200, 1], np.sqrt(((array / [1, 1e200, 1]) ** 2).mean(0)))
    np.testing.assert_array_equal(state.low, array.min(0))
    np.testing.assert_array_equal(state.high, array.max(0))
    np.testing.assert_array_equal(state.zeros, (array == 0).sum(0))


def named(grows=False, **blocks):
    state = NamedRows(Sum, grows)
    for name, numbers in blocks.items():
        state.update(name.replace("_", "."), torch.tensor([numbers], dtype=torch.float64))
    return state


def contents(state):
    return {name: rows.value.tolist() for name, rows in state.items()}


def test_names_are_united_and_their_blocks_merged():
    merged = named(b_10=[1, 2], b_9=[3]).merge(named(b_9=[4], c=[5.0]))
    assert contents(merged) == {"b.9": [7.0], "b.10": [1.0, 2.0], "c": [5.0]}
    assert list(contents(merged)) == ["b.9", "b.10", "c"]
    assert contents(merged.unpack(merged.pack())) == contents(merged)
    assert contents(named().merge(merged)) == contents(merged.merge(named())) == contents(merged)


def test_blocks_of_other_widths_grow_or_are_an_error():
    assert contents(named(True, a=[1]).merge(named(True, a=[2, 3]))) == {"a": [3.0, 3.0]}
    with pytest.raises(ConfigError, match="'a' has 1 columns, and 2 elsewhere"):
        named(a=[1]).merge(named(a=[2, 3]))


def test_counts_stay_exact_beyond_float32():
    merged = named(a=[2**24]).merge(named(a=[1])).merge(named(a=[2**40 + 1]))
    assert contents(merged) == {"a": [2**24 + 1 + 2**40 + 1]}
