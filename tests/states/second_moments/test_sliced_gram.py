"""Products of rows from float32 digits: as exact as float64, where a float32 product is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hjepa_dist_metrics import Collapse, HierarchyFeatures, PredictionQuality
from hjepa_dist_metrics.states import Covariance
from hjepa_dist_metrics.states.second_moments import covariance, sliced_gram as sliced
from tests.helpers.contract import EXAMPLES, assert_same, compute, fed
from tests.helpers.waiting import no_waiting, on_device

GENERATOR = torch.Generator().manual_seed(0)


def normal(rows, dim, dtype=torch.float64):
    return torch.randn(rows, dim, generator=GENERATOR, dtype=dtype).to(torch.float64)


def exact(rows):
    wide = rows.numpy().astype(np.longdouble)
    return (wide.T @ wide).astype(np.float64)


CASES = {
    "normal": normal(700, 24),
    "of float32": normal(700, 24, torch.float32),
    "more rows than a block": normal(3000, 5),
    "one row": normal(1, 7),
    "columns of scales from 1e-30 to 1e30": normal(300, 13)
    * torch.logspace(-30, 30, 13, dtype=torch.float64),
    "powers of two": torch.exp2(torch.randint(-3, 4, (500, 6), generator=GENERATOR).double()),
    "equal elements": torch.full((1500, 3), 1 / 3, dtype=torch.float64),
    "an outlier": normal(1000, 8) * torch.where(torch.arange(1000) == 3, 1e4, 1.0)[:, None].double(),
    "a column of zeros": normal(50, 4) * torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64),
}


@pytest.mark.parametrize("name", CASES)
def test_as_exact_as_float64(name):
    rows = CASES[name]
    expected = exact(rows)
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    error = np.abs(sliced.sliced_gram(rows).numpy() - expected)
    assert (error <= 1e-11 * scale).all()


def test_a_nonfinite_element_makes_its_row_and_column_nan():
    rows = normal(20, 4)
    rows[2, 1], rows[5, 3] = float("nan"), float("inf")
    found = sliced.sliced_gram(rows)
    bad = torch.tensor([False, True, False, True])
    assert torch.equal(found.isnan(), bad[:, None] | bad)
    assert sliced.sliced_gram(rows[:0]).tolist() == [[0.0] * 4] * 4


def test_rank_deficient_rows_keep_their_rank():
    """Eigenvalues of no variance stay below 1e-13 of the largest, which is noise; float32 leaves 1e-8."""
    rows = (normal(900, 3) @ normal(3, 40)).to(torch.float32).to(torch.float64)
    ours = torch.linalg.eigvalsh(sliced.sliced_gram(rows))
    best = torch.linalg.eigvalsh(rows.T @ rows)
    single = torch.linalg.eigvalsh((rows.float().T @ rows.float()).double())
    torch.testing.assert_close(ours, best, rtol=1e-9, atol=float(best[-1]) * 1e-13)
    assert float((single - best).abs().max() / best[-1]) > 1e-9


@pytest.mark.parametrize(
    "kind", [Collapse, HierarchyFeatures, PredictionQuality], ids=lambda kind: kind.__name__
)
def test_metrics_keep_their_numbers(kind, monkeypatch):
    example = EXAMPLES[kind]
    pieces = [slice(0, 100), slice(100, 103), slice(103, 400)]
    expected = compute(fed(example, pieces))
    calls = []
    monkeypatch.setattr(covariance, "gram", lambda rows: calls.append(1) or sliced.sliced_gram(rows))
    found = compute(fed(example, pieces))
    assert calls
    assert_same(found, expected, example)


def test_an_update_does_not_wait(monkeypatch):
    monkeypatch.setattr(covariance, "gram", sliced.sliced_gram)
    state = Covariance(6)
    rows = on_device(torch.zeros(2000, 6))
    state.update(rows)
    with no_waiting():
        state.update(rows)


@pytest.mark.parametrize(
    ("capability", "slow"), [((8, 0), False), ((9, 0), False), ((8, 9), True), ((12, 0), True)]
)
def test_the_way_is_chosen_by_the_device(capability, slow, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    sliced.float64_is_slow.cache_clear()
    assert sliced.float64_is_slow(torch.device("cuda", 0)) is slow
    assert sliced.float64_is_slow(torch.device("cpu")) is False
    sliced.float64_is_slow.cache_clear()
