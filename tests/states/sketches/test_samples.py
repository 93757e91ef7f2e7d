"""Histograms, samples, concats and replicated values over any split."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from hjepa_dist_metrics import ConfigError
from hjepa_dist_metrics.states import Concat, Histogram, Replicated, Sample
from tests.helpers.splits import Split, bits, merged_over, parts, splits, total

SEEDS = st.integers(0, 2**16)
EDGES = [-2.0, -0.5, 0.0, 0.25, 3.0]


def values(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


@given(splits(), SEEDS)
def test_histogram_of_any_split(split: Split, seed: int):
    data = values(total(split), seed)
    merged = merged_over(split, lambda: Histogram(EDGES), lambda s, piece: s.update(data[piece]))
    expected, _ = np.histogram(np.clip(data.numpy(), EDGES[0], EDGES[-1]), EDGES)
    assert merged.counts.dtype == np.int64
    assert merged.counts.tolist() == expected.tolist()
    if len(data):
        assert (merged.minimum, merged.maximum) == (data.min().item(), data.max().item())


def test_histogram_edges_nonfinite_and_masks():
    state = Histogram(EDGES)
    batch = torch.tensor([-9.0, -2.0, -0.5, 0.0, 0.25, 3.0, 9.0, float("nan"), float("inf"), 1.0])
    state.update(batch, torch.tensor([True] * 9 + [False]))
    assert state.counts.tolist() == [2, 1, 1, 3]
    assert state.nonfinite == 2
    assert (state.minimum, state.maximum) == (-9.0, 9.0)


def test_histogram_counts_stay_exact_far_beyond_float32():
    state = Histogram([0.0, 1.0, 2.0])
    loaded = state.unpack({**state.pack(), "counts": torch.tensor([2**40 + 1, 3])})
    merged = loaded.merge(loaded)
    assert merged.counts.tolist() == [2**41 + 2, 6]
    exact = merged_over([[1], [1]], lambda: loaded, lambda s, piece: None)
    assert exact.counts.tolist() == [2**41 + 2, 6]


@pytest.mark.parametrize("edges", [[1.0], [0.0, 0.0], [1.0, 0.0], [0.0, float("nan")]])
def test_histogram_edges_must_rise(edges):
    with pytest.raises(ConfigError, match="rising"):
        Histogram(edges)


@pytest.mark.parametrize("with_ids", [True, False])
@given(split=splits(most_rows=12), seed=SEEDS)
def test_the_sample_is_the_same_for_every_split(with_ids: bool, split: Split, seed: int):
    count = total(split)
    data = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    ids = torch.randperm(count, generator=torch.Generator().manual_seed(seed)) if with_ids else None

    def feed(state, piece):
        state.update(data[piece], ids=None if ids is None else ids[piece])

    merged = merged_over(split, lambda: Sample(7, 3, seed=5), feed)
    whole = Sample(7, 3, seed=5)
    whole.update(data, ids=ids)
    assert merged.seen == whole.seen == count
    assert bits(merged.keys) == bits(whole.keys)
    assert bits(merged.rows_kept) == bits(whole.rows_kept)
    assert {tuple(row) for row in merged.rows_kept.tolist()} <= {tuple(row) for row in data.tolist()}
    assert len(merged.rows_kept) == min(count, 7)


@given(splits(), SEEDS)
def test_a_sample_leaves_invalid_rows_out(split: Split, seed: int):
    data = torch.randn(total(split), 2, generator=torch.Generator().manual_seed(seed))
    valid = torch.rand(len(data), generator=torch.Generator().manual_seed(seed + 1)) < 0.5
    merged = merged_over(split, lambda: Sample(64, 2), lambda s, piece: s.update(data[piece], valid[piece]))
    assert merged.seen == int(valid.sum())
    assert sorted(merged.rows_kept.tolist()) == sorted(data[valid].tolist())


def test_a_sample_is_uniform():
    """Chi-square of how often each of 200 rows is among 20, over 400 seeds; mean 199, std about 18."""
    count, capacity, seeds = 200, 20, 400
    data = torch.arange(count, dtype=torch.float32)[:, None]
    hits = np.zeros(count)
    for seed in range(seeds):
        state = Sample(capacity, 1, seed)
        state.update(data, ids=torch.arange(count))
        hits[state.rows_kept[:, 0].long().numpy()] += 1
    expected = seeds * capacity / count
    chi_square = ((hits - expected) ** 2 / (expected * (1 - capacity / count))).sum()
    assert 150 < chi_square < 260


def test_the_rows_own_bits_give_uniform_samples_too():
    """Rows are in the sample whatever their values: the sample's mean is the mean, within four sigma."""
    data = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0))
    state = Sample(1000, 4, seed=3)
    state.update(data)
    error = state.rows_kept.mean(dim=0) - data.mean(dim=0)
    assert error.abs().max() < 4 / 1000**0.5


def test_a_sample_wants_an_id_for_each_row():
    with pytest.raises(ConfigError, match="an id for each of 4 rows, got 3"):
        Sample(2, 1).update(torch.zeros(4, 1), ids=torch.arange(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_sample_of_another_precision_is_that_of_its_float32_rows(dtype):
    data = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    one, other = Sample(5, 2), Sample(5, 2)
    one.update(data)
    other.update(data.float())
    assert torch.equal(one.rows_kept, other.rows_kept)


@given(splits(), SEEDS)
def test_concat_keeps_all_rows_in_rank_order(split: Split, seed: int):
    data = values(2 * total(split), seed).reshape(-1, 2).to(torch.float32)
    merged = merged_over(split, lambda: Concat(64, 2), lambda s, piece: s.update(data[piece]))
    assert torch.equal(merged.rows_kept, data)
    assert len(parts(split)) == len(split)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_concat_keeps_its_dtype_over_ranks(dtype):
    data = torch.tensor([[0], [1], [1]]).to(dtype)
    merged = merged_over([[2], [], [1]], lambda: Concat(8, 1, dtype), lambda s, piece: s.update(data[piece]))
    assert merged.rows_kept.dtype == dtype
    assert torch.equal(merged.rows_kept, data)


def test_concat_refuses_more_than_its_capacity_and_keeps_what_it_has():
    state = Concat(3, 1)
    state.update(torch.ones(2, 1))
    with pytest.raises(ConfigError, match="2 rows and 2 more exceed the capacity of 3"):
        state.update(torch.ones(2, 1))
    assert len(state.rows_kept) == 2
    assert len(state.merge(state).rows_kept) == 4


def test_replicated_keeps_the_latest_value_and_no_values_change_nothing():
    state = Replicated()
    assert np.isnan(state.value)
    state.update([1.0, 2.0])
    state.update(torch.zeros(0))
    assert state.value == 2.0


@given(splits(), SEEDS)
def test_replicated_comes_from_any_rank_that_has_it(split: Split, seed: int):
    merged = merged_over(split, Replicated, lambda s, piece: s.update(0.25))
    assert merged.value == 0.25 if any(split) else np.isnan(merged.value)
