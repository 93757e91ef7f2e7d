"""Quantities of ranks: add up over time, compare over ranks."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given

from hjepa_dist_metrics.states import RankExtremes
from tests.helpers.splits import Split, parts, splits, sync_states

SECONDS = np.random.default_rng(0).uniform(0.1, 1.0, 200)


@given(splits())
def test_per_rank_against_numpy(split: Split):
    states, shares = [], []
    for slices in parts(split):
        state = RankExtremes()
        mine = np.concatenate([SECONDS[piece] for piece in slices]) if slices else np.zeros(0)
        for value in mine:
            state.update(value)
        states.append({"state": state})
        shares.append(mine)
    merged = sync_states(states)[0]["state"]
    held = {rank: share for rank, share in enumerate(shares) if len(share)}
    everything = np.concatenate(shares)
    assert merged.count == len(everything)
    np.testing.assert_allclose(merged.total, everything.sum(), rtol=1e-12)
    if not held:
        assert math.isnan(merged.mean)
        assert merged.highest_rank is None
        assert merged.lowest_rank is None
        return
    means = {rank: share.mean() for rank, share in held.items()}
    np.testing.assert_allclose(merged.mean, everything.mean(), rtol=1e-12)
    np.testing.assert_allclose(merged.highest, max(means.values()), rtol=1e-12)
    np.testing.assert_allclose(merged.lowest, min(means.values()), rtol=1e-12)
    np.testing.assert_allclose(merged.longest, max(share.sum() for share in held.values()), rtol=1e-12)
    assert means[merged.highest_rank] == max(means.values())
    assert means[merged.lowest_rank] == min(means.values())
