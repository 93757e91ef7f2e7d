"""Sums by name: any split over states, names that only some have."""

import numpy as np
import pytest
import torch

from hjepa_dist_metrics import ConfigError
from hjepa_dist_metrics.states import NamedSums


def filled(entries):
    state = NamedSums()
    for name, value, weight in entries:
        state.update(name, value, weight)
    return state


def test_any_split_gives_the_weighted_mean():
    rng = np.random.default_rng(0)
    entries = [(f"m{rng.integers(3)}", rng.normal(), int(rng.integers(1, 5))) for _ in range(40)]
    for cut in (0, 7, 40):
        merged = filled(entries[:cut]).merge(filled(entries[cut:]))
        for name in {entry[0] for entry in entries}:
            values, weights = zip(*((v, w) for n, v, w in entries if n == name), strict=True)
            assert merged.means[name] == pytest.approx(np.average(values, weights=weights), rel=1e-12)


def test_packing_keeps_everything_and_merging_changes_neither():
    mine, other = filled([("b", 1.0, 2.0), ("ä", 3.0, 1.0)]), filled([("b", 4.0, 1.0)])
    merged = mine.merge(other)
    assert merged.totals == {"b": (6.0, 3.0), "ä": (3.0, 1.0)}
    assert mine.totals == {"b": (2.0, 2.0), "ä": (3.0, 1.0)}
    assert mine.empty().unpack(mine.pack()).totals == mine.totals
    assert NamedSums().unpack(NamedSums().pack()).totals == {}
    assert NamedSums().merge(mine).totals == mine.totals


def test_a_value_of_many_elements_is_refused():
    with pytest.raises(ConfigError, match="'a' must be one number"):
        NamedSums().update("a", torch.zeros(2))
