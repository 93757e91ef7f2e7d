"""Scatter between and within classes, and the spectra that states keep."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given

from hjepa_dist_metrics.states import ClassScatter, Covariance
from tests.helpers.splits import Split, merged_over, splits, total

DIM, TOKENS = 3, 4


def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens [B, N, D] and which are valid; each image has two at least."""
    random = np.random.default_rng(11)
    tokens = random.normal(size=(count, TOKENS, DIM)) + 3 * random.normal(size=(count, 1, DIM)) + 40
    valid = random.random((count, TOKENS)) < 0.7
    valid[:, :2] = True
    return torch.from_numpy(tokens), torch.from_numpy(valid)


def fed(state: ClassScatter, tokens: torch.Tensor, valid: torch.Tensor) -> None:
    weight = valid[..., None].double()
    means = (tokens * weight).sum(1) / weight.sum(1)
    state.update(means, None, tokens - means[:, None], valid)


def oracle(tokens: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the eigenvalues of Sw^-1 Sb by the general solver."""
    means = np.array([t[v].mean(0) for t, v in zip(tokens, valid, strict=True)])
    offsets = np.concatenate([t[v] - m for t, v, m in zip(tokens, valid, means, strict=True)])
    within = offsets.T @ offsets / (len(offsets) - len(means)) + 1e-4 * np.eye(DIM)
    return np.sort(np.linalg.eigvals(np.linalg.solve(within, np.cov(means.T))).real)


@given(splits())
def test_any_split_over_ranks_has_the_spectrum_of_all_images(split: Split):
    tokens, valid = images(total(split))
    merged = merged_over(split, lambda: ClassScatter(DIM), lambda s, p: fed(s, tokens[p], valid[p]))
    if total(split) < 2:
        assert merged.scaled()[1] is None
        assert merged.spectrum().isnan().all()
    else:
        expected = oracle(tokens.numpy(), valid.numpy())
        np.testing.assert_allclose(merged.spectrum().numpy(), expected, rtol=1e-8, atol=1e-8)


def test_a_spectrum_is_of_what_the_state_has_seen_by_now():
    tokens, valid = images(12)
    state = ClassScatter(DIM)
    fed(state, tokens[:5], valid[:5])
    first = state.spectrum()
    other = ClassScatter(DIM)
    fed(other, tokens[5:], valid[5:])
    np.testing.assert_allclose(state.merge(other).spectrum(), oracle(tokens.numpy(), valid.numpy()))
    assert torch.equal(state.spectrum(), first)
    fed(state, tokens[5:], valid[5:])
    np.testing.assert_allclose(state.spectrum(), oracle(tokens.numpy(), valid.numpy()))
    assert state.unpack(state.pack()).spectrum().equal(state.spectrum())
    assert state.empty().spectrum().isnan().all()


def test_a_covariance_works_its_spectra_out_anew_after_an_update():
    rows = torch.randn(30, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    state = Covariance(5)
    for end in (10, 30):
        state.update(rows[end - 10 if end == 10 else 10 : end])
        seen = rows[:end].numpy()
        np.testing.assert_allclose(state.spectrum(), np.linalg.eigvalsh(np.cov(seen.T)), atol=1e-12)
        second = np.linalg.eigvalsh(seen.T @ seen)
        np.testing.assert_allclose(state.spectrum("second_moment"), second, atol=1e-12)


def test_a_state_around_the_same_tensors_has_seen_what_it_has_and_no_more():
    tokens, valid = images(6)
    state = ClassScatter(DIM)
    fed(state, tokens[:5], valid[:5])
    other = state._bare()
    fed(other, tokens[5:], valid[5:])
    assert (state.between.count, other.between.count) == (5, 6)
