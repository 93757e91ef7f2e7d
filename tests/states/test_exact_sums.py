"""Sums whose bits do not depend on the order, against exact rational arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from hjepa_dist_metrics.states import exact_sums
from tests.helpers.splits import bits

pytestmark = pytest.mark.accuracy

RNG = np.random.default_rng(0)
SIGNS = RNG.choice([-1.0, 1.0], 60)
DATA = {
    "ordinary": RNG.normal(size=60),
    "tiny": 1e-12 * RNG.random(60),
    "of two sizes": RNG.normal(size=60) * RNG.choice([1e-9, 1e3], 60),
    "of every size": SIGNS * RNG.random(60) * 10.0 ** RNG.integers(-320, 305, 60),
    "with zeros": RNG.normal(size=60) * RNG.integers(0, 2, 60),
    "subnormal": RNG.random(60) * 1e-310,
    "powers of two": 2.0 ** RNG.integers(-200, 200, 60),
}


@pytest.mark.parametrize("values", [pytest.param(v, id=name) for name, v in DATA.items()])
@pytest.mark.parametrize("cut", [0, 1, 23])
def test_sums_are_exact_in_any_order(values, cut):
    tensor, group = torch.from_numpy(values), torch.zeros(60, dtype=torch.int64)
    parts = exact_sums.split(tensor)
    assert torch.equal(exact_sums.total(parts), tensor)
    whole = exact_sums.add_up(parts, group, 1)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(cut))
    halves = [exact_sums.add_up(parts[piece], group[: len(piece)], 1) for piece in (order[:cut], order[cut:])]
    merged = exact_sums.add_up(torch.cat(halves), group[:2], 1)
    assert bits(merged) == bits(whole)
    exact = float(sum(Fraction(value) for value in values.tolist()))
    assert float(exact_sums.total(whole)) == pytest.approx(exact, abs=60 * 2.0**-52 * np.abs(values).max())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nonfinite_values_stay_whatever_they_are_added_to(bad):
    values = torch.tensor([bad, 1e300, -1e-300], dtype=torch.float64)
    total = exact_sums.add_up(exact_sums.split(values), torch.zeros(3, dtype=torch.int64), 1)
    assert str(exact_sums.total(total).item()) == str(bad)


def test_groups_are_apart():
    values = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    sums = exact_sums.add_up(exact_sums.split(values), torch.tensor([0, 2, 0, 2]), 3)
    assert exact_sums.total(sums).tolist() == [5.0, 0.0, 10.0]
