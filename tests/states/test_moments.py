"""Sums, extremes, moments and covariances against NumPy in float64 on all samples at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from hjepa_dist_metrics import ConfigError
from hjepa_dist_metrics.states import Covariance, Max, Min, Moments, Sum
from tests.helpers.splits import Split, merged_over, splits, sync_states, total

SEEDS = st.integers(0, 2**16)
OFFSETS = st.sampled_from([0.0, -3.0, 1e4, 1e8])


def rows(count: int, dim: int, seed: int, offset: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) + offset


@given(splits(), SEEDS)
def test_sum_of_any_split(split: Split, seed: int):
    data = rows(total(split), 3, seed)
    merged = merged_over(split, lambda: Sum((3,)), lambda state, piece: state.update(data[piece]))
    np.testing.assert_allclose(merged.value, data.numpy().sum(axis=0), rtol=1e-9, atol=1e-12)


@given(splits(), SEEDS)
def test_sums_of_integers_are_exact(split: Split, seed: int):
    generator = torch.Generator().manual_seed(seed)
    data = torch.randint(-(2**45), 2**45, (total(split),), generator=generator)
    merged = merged_over(split, Sum, lambda state, piece: state.update(data[piece]))
    assert int(merged.value) == sum(data.tolist())


@given(splits(), SEEDS)
def test_extremes_of_any_split_and_their_rank(split: Split, seed: int):
    data = rows(total(split), 1, seed)[:, 0]
    low = merged_over(split, Min, lambda state, piece: state.update(data[piece]))
    high = merged_over(split, Max, lambda state, piece: state.update(data[piece]))
    if not len(data):
        assert (low.value, low.rank) == (float("inf"), None)
        assert (high.value, high.rank) == (float("-inf"), None)
        return
    holders = np.repeat(np.arange(len(split)), [sum(batches) for batches in split])
    assert (low.value, low.rank) == (data.min().item(), holders[int(data.argmin())])
    assert (high.value, high.rank) == (data.max().item(), holders[int(data.argmax())])


def test_a_tie_goes_to_the_lowest_rank_and_nan_wins():
    tie = merged_over([[1], [1], [1]], Max, lambda state, piece: state.update(min(piece.start, 1)))
    assert (tie.value, tie.rank) == (1.0, 1)
    nan = merged_over([[1], [1]], Min, lambda state, piece: state.update([5.0, float("nan")][piece.start]))
    assert np.isnan(nan.value)
    assert nan.rank == 1


@given(splits(), SEEDS, OFFSETS)
def test_moments_of_any_split(split: Split, seed: int, offset: float):
    data = rows(total(split), 4, seed, offset)
    merged = merged_over(split, lambda: Moments((4,)), lambda state, piece: state.update(data[piece]))
    values = data.numpy()
    assert merged.count.tolist() == [len(values)] * 4
    assert merged.nonfinite.tolist() == [0] * 4
    if not len(values):
        assert np.isnan(merged.mean).all()
        assert np.isnan(merged.variance).all()
        return
    np.testing.assert_allclose(merged.mean, values.mean(axis=0), rtol=1e-9, atol=1e-12)
    # The oracle is centred by hand: at an offset of 1e8 a variance has 8 digits in the data themselves.
    spread = ((values - values.mean(axis=0)) ** 2).sum(axis=0) / max(1, len(values) - 1)
    tolerance = 1e-9 if abs(offset) < 1e6 else 1e-6
    np.testing.assert_allclose(merged.variance, spread, rtol=tolerance, atol=1e-12)
    np.testing.assert_allclose(merged.std, np.sqrt(spread), rtol=tolerance, atol=1e-9)


@given(splits(), SEEDS, OFFSETS)
def test_covariance_of_any_split(split: Split, seed: int, offset: float):
    data = rows(total(split), 3, seed, offset)
    merged = merged_over(split, lambda: Covariance(3), lambda state, piece: state.update(data[piece]))
    values = data.numpy()
    assert merged.count == len(values)
    if not len(values):
        assert not merged.matrix.any()
        return
    centred = values - values.mean(axis=0)
    tolerance = 1e-9 if abs(offset) < 1e6 else 1e-6
    np.testing.assert_allclose(merged.mean.numpy(), values.mean(axis=0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        merged.matrix.numpy(), centred.T @ centred / max(1, len(values) - 1), rtol=tolerance, atol=1e-9
    )
    np.testing.assert_allclose(
        merged.second_moment.numpy(), values.T @ values, rtol=1e-9, atol=1e-9 * max(1.0, offset**2)
    )


@given(splits(), SEEDS)
def test_valid_masks_leave_rows_out_and_their_nans(split: Split, seed: int):
    data = rows(total(split), 2, seed)
    valid = torch.rand(len(data), generator=torch.Generator().manual_seed(seed + 1)) < 0.6
    data[~valid] = float("nan")
    moments = merged_over(split, lambda: Moments((2,)), lambda s, piece: s.update(data[piece], valid[piece]))
    covariance = merged_over(
        split, lambda: Covariance(2), lambda s, piece: s.update(data[piece], valid[piece])
    )
    kept = data[valid].numpy()
    assert moments.count.tolist() == [len(kept)] * 2
    assert covariance.count == len(kept)
    assert moments.nonfinite.tolist() == [0, 0]
    assert covariance.nonfinite == 0
    if len(kept):
        np.testing.assert_allclose(moments.mean, kept.mean(axis=0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(covariance.mean.numpy(), kept.mean(axis=0), rtol=1e-9, atol=1e-12)


@given(splits(), st.sampled_from([0.1, 1e4 / 3, -7.7e-5, 1e30 / 7]))
def test_constants_have_a_variance_of_exactly_zero_after_a_sync(split: Split, constant: float):
    data = torch.full((total(split), 3), constant, dtype=torch.float64)
    moments = merged_over(split, lambda: Moments((3,)), lambda s, piece: s.update(data[piece]))
    covariance = merged_over(split, lambda: Covariance(3), lambda s, piece: s.update(data[piece]))
    assert not covariance.matrix.any()
    if len(data):
        assert not moments.variance.any()
        assert moments.mean.tolist() == covariance.mean.tolist() == [constant] * 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 3, 7])
def test_nonfinite_values_are_counted_and_make_their_column_nan(bad: float, place: int):
    data = rows(8, 3, 0)
    data[place, 1] = bad
    feeding = [[3, 1], [], [4]]
    moments = merged_over(feeding, lambda: Moments((3,)), lambda s, piece: s.update(data[piece]))
    covariance = merged_over(feeding, lambda: Covariance(3), lambda s, piece: s.update(data[piece]))
    assert moments.nonfinite.tolist() == [0, 1, 0]
    assert covariance.nonfinite == 1
    assert np.isnan(moments.mean).tolist() == np.isnan(moments.variance).tolist() == [False, True, False]
    assert covariance.mean.isnan().tolist() == [False, True, False]
    assert covariance.matrix.isnan().tolist() == [[False, True, False], [True] * 3, [False, True, False]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_inputs_are_accumulated_in_float64(dtype: torch.dtype):
    data = rows(5000, 2, 1, offset=30.0).to(dtype)
    exact = data.to(torch.float64).numpy()
    moments, covariance = Moments((2,)), Covariance(2)
    moments.update(data)
    covariance.update(data)
    np.testing.assert_allclose(moments.mean, exact.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, exact.var(axis=0, ddof=1), rtol=1e-9)
    np.testing.assert_allclose(covariance.matrix.numpy(), np.cov(exact.T), rtol=1e-9, atol=1e-12)


def test_autocast_and_inference_mode_change_nothing():
    data = rows(64, 5, 2).to(torch.float32)
    plain, cast = Covariance(5), Covariance(5)
    plain.update(data)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        cast.update(data)
    assert torch.equal(plain.matrix, cast.matrix)


@pytest.mark.parametrize("make", [Sum, Min, Max, Moments])
def test_what_inference_mode_touched_can_be_updated_outside(make):
    state = make()
    with torch.inference_mode():
        state.update(torch.ones(2))
    state.update(torch.zeros(2))
    (synced,) = sync_states([{"state": state}])
    assert torch.equal(synced["state"].data[0], state.data[0])


def test_one_row_one_dimension():
    covariance, moments = Covariance(1), Moments()
    covariance.update(torch.tensor([[4.0]]))
    moments.update(4.0)
    assert covariance.matrix.tolist() == [[0.0]]
    assert (moments.count, moments.mean, moments.variance) == (1, 4.0, 0.0)


def test_a_million_rows_go_in_blocks_and_stay_exact():
    data = rows(300_000, 4, 3, offset=1e4).to(torch.float32)
    state = Moments((4,))
    state.update(data)
    exact = data.to(torch.float64).numpy()
    np.testing.assert_allclose(state.variance, exact.var(axis=0, ddof=1), rtol=1e-9)


def test_states_follow_their_inputs_to_a_device():
    for state, batch in ((Sum(), torch.ones(2)), (Moments((3,)), torch.ones(2, 3))):
        state.update(batch.to("meta"))
        assert state.data.device.type == "meta"


def test_states_are_made_on_the_host_whatever_the_default_device():
    with torch.device("meta"):
        made = [Sum(), Max(), Moments((2,)), Covariance(2)]
    assert {tensor.device.type for state in made for tensor in state.pack().values()} == {"cpu"}


@pytest.mark.parametrize(
    ("state", "batch", "words"),
    [
        (Sum((3,)), torch.ones(4), r"shape \[\.\.\., 3\], got \[4\]"),
        (Moments((2, 2)), torch.ones(2), r"shape \[\.\.\., 2, 2\], got \[2\]"),
        (Covariance(3), torch.ones(2, 4), r"width 3, got shape \[2, 4\]"),
    ],
)
def test_wrong_shapes_say_what_was_expected(state, batch, words):
    with pytest.raises(ConfigError, match=words):
        state.update(batch)


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ConfigError, match=r"shape \[4\], got \[3\]"):
        Moments((2,)).update(torch.ones(4, 2), torch.ones(3, dtype=torch.bool))


def test_unlike_states_do_not_merge():
    with pytest.raises(ConfigError, match="cannot merge"):
        Sum().merge(Sum((2,)))
    with pytest.raises(ConfigError, match=r"cannot merge Covariance\[3\] into Covariance\[2\]"):
        Covariance(2).merge(Covariance(3))
