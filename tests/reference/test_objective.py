"""The objective against NumPy in float64, and split over ranks against one process."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from hjepa_dist_metrics.reference.hjepa.config import ModelConfig, ObjectiveConfig
from hjepa_dist_metrics.reference.hjepa.masking import MultiBlockMaskGenerator
from hjepa_dist_metrics.reference.hjepa.model import HJEPA
from hjepa_dist_metrics.reference.hjepa.objective import HJEPAObjective
from hjepa_dist_metrics.reference.hjepa.vicreg import pooled_moments, vicreg_terms

WEIGHTS = (1.0, 0.5, 0.25)
EPS = 1e-4


def make_model(config):
    torch.manual_seed(0)
    model = HJEPA(
        ModelConfig(patch_size=2, embed_dim=16, depth=1, num_heads=2, predictor_dim=16, objective=config),
        (8, 8),
    )
    return model.double()


def make_batch(size, padded=False):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, 1, 8, 8, generator=generator, dtype=torch.float64)
    mask = MultiBlockMaskGenerator((4, 4), seed=1).generate(torch.arange(size), 0)
    valid = torch.ones_like(mask)
    if padded:
        valid[::2, -4:] = False
    return images, mask, valid


def run_ranks(config, shares, batch):
    """Emulate ranks: the first pass collects what each would reduce, the second hands all of them the sum."""
    images, mask, valid = batch
    collected, results, gradients = [], [], []
    for reducing in (False, True):
        for share in shares:
            model = make_model(config)
            calls = []

            def reduce_sum(tensor, reducing=reducing, calls=calls):
                calls.append(tensor)
                return torch.stack(collected).sum(dim=0) if reducing else tensor

            objective = HJEPAObjective(config, WEIGHTS, reduce_sum, world_size=len(shares))
            output = model(images[share], mask[share], patch_valid=valid[share])
            result = objective(output)
            assert len(calls) == 1, "one all-reduce a step"
            assert calls[0].dtype == torch.float64
            assert not calls[0].requires_grad
            if not reducing:
                collected.append(calls[0])
                continue
            result.loss.backward()
            results.append(result)
            gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    return results, [torch.stack(g).mean(dim=0) for g in zip(*gradients, strict=True)]


CONFIGS = [
    ObjectiveConfig(regularization="none"),
    ObjectiveConfig(regularization="vicreg", covariance_weight=0.3),
    ObjectiveConfig(loss="cosine", target_normalization="layer", regularization="none"),
    ObjectiveConfig(target_normalization="layer", regularization="none", stop_gradient=False),
    ObjectiveConfig(regularization="vicreg", stop_gradient=False),
]


@pytest.mark.parametrize(
    "config", CONFIGS, ids=lambda c: f"{c.loss}-{c.target_normalization}-{c.regularization}"
)
@pytest.mark.parametrize("cuts", [(6,), (3,), (1, 2, 9), (4, 8)])
@pytest.mark.parametrize("padded", [False, True])
def test_ranks_equal_one_process(config, cuts, padded):
    batch = make_batch(12, padded)
    everything = torch.arange(12)
    (whole,), whole_gradients = run_ranks(config, [everything], batch)
    shares = [part for part in torch.tensor_split(everything, cuts) if len(part)]
    results, gradients = run_ranks(config, shares, batch)
    for ours, theirs in zip(gradients, whole_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    for key, value in whole.losses.items():
        merged = sum(float(r.losses[key]) * r.count for r in results) / sum(r.count for r in results)
        assert merged == pytest.approx(float(value), rel=1e-5)
    assert float(torch.stack([r.loss.detach() for r in results]).mean()) == pytest.approx(
        float(whole.loss.detach()), rel=1e-5
    )
    assert float(whole.loss.detach()) == pytest.approx(float(whole.losses["loss"]), rel=1e-5)
    sums, counts = sum(r.sums for r in results), sum(r.counts for r in results)
    torch.testing.assert_close(sums, whole.sums, rtol=1e-5, atol=0)
    assert torch.equal(counts, whole.counts)
    torch.testing.assert_close(
        torch.cat([r.targets[0] for r in results]), whole.targets[0], rtol=1e-4, atol=1e-5
    )


def numpy_smooth_l1(x, y):
    d = np.abs(x - y)
    return np.where(d < 1, 0.5 * d**2, d - 0.5).mean(axis=-1)


def numpy_cosine(x, y):
    return 1 - (x * y).sum(-1) / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1))


@pytest.mark.parametrize("loss", ["smooth_l1", "cosine"])
@pytest.mark.parametrize("normalization", ["batch", "layer"])
def test_the_loss_equals_numpy(loss, normalization):
    config = ObjectiveConfig(loss=loss, target_normalization=normalization, regularization="none")
    images, mask, valid = make_batch(10, padded=True)
    output = make_model(config)(images, mask, patch_valid=valid)
    result = HJEPAObjective(config, WEIGHTS)(output)
    expected = []
    for prediction, target, counted, real in zip(
        *(output[k] for k in ("predictions", "targets", "masks_valid", "tokens_valid")), strict=True
    ):
        x, t, m, v = (a.detach().double().numpy() if a.is_floating_point() else a.numpy()
                      for a in (prediction, target, counted, real))  # fmt: skip
        y = np.zeros_like(t)
        for n in range(t.shape[1]):
            if normalization == "batch" and v[:, n].any():
                rows = t[v[:, n], n]
                y[:, n] = (t[:, n] - rows.mean(axis=0)) / np.sqrt(rows.var(axis=0) + EPS)
        if normalization == "layer":
            y = (t - t.mean(-1, keepdims=True)) / np.sqrt(t.var(-1, keepdims=True) + 1e-5)
        expected.append((numpy_smooth_l1 if loss == "smooth_l1" else numpy_cosine)(x[m], y[m]).mean())
    for i, value in enumerate(expected):
        assert float(result.losses[f"loss_h{i}"]) == pytest.approx(value, rel=1e-5)
    total = sum(w * v for w, v in zip(WEIGHTS, expected, strict=True))
    assert float(result.losses["loss"]) == pytest.approx(total, rel=1e-5)
    assert float(result.losses["loss_unweighted"]) == pytest.approx(np.mean(expected), rel=1e-5)
    assert result.counts.tolist() == [int(m.sum()) for m in output["masks_valid"]]


def test_standardised_targets_have_no_position_part():
    config = ObjectiveConfig(regularization="none")
    images, mask, _ = make_batch(64)
    targets = HJEPAObjective(config, WEIGHTS)(make_model(config)(images, mask)).targets
    for level in targets:
        assert level.mean(dim=0).abs().max() < 1e-5
        assert level.var(dim=0, unbiased=False).max() <= 1.0 + 1e-5


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(2, 9), dim=st.integers(1, 6), scale=st.floats(0.05, 3), seed=st.integers(0, 1000))
def test_vicreg_value_equals_numpy_and_gradient_equals_autograd(rows, dim, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    features = (scale * torch.randn(rows, 3, dim, generator=generator) + 2.0).requires_grad_()
    valid = torch.rand(rows, 3, generator=generator) < 0.7
    valid[:2, 0] = True
    local = pooled_moments(features, valid)
    terms = vicreg_terms(local, local.sums, 1.0, 0.2)

    keep = valid.any(dim=1)
    x = features.detach().double().requires_grad_()
    z = torch.stack([x[i][valid[i]].mean(dim=0) for i in range(rows) if keep[i]])
    cov = np.atleast_2d(np.cov(z.detach().numpy().T))
    off = cov - np.diag(np.diag(cov))
    variance = np.maximum(0, 1 - np.sqrt(np.diag(cov) + EPS)).mean()
    assert float(terms.variance) == pytest.approx(variance, rel=1e-4, abs=1e-6)
    assert float(terms.covariance) == pytest.approx((off**2).sum() / dim, rel=1e-4, abs=1e-6)

    # The oracle lets autograd go through mean and covariance.
    centred = z - z.mean(dim=0)
    c = centred.T @ centred / (len(z) - 1)
    penalty = (1 - (c.diagonal() + EPS).sqrt()).clamp(min=0).mean()
    (penalty + 0.2 * (c - torch.diag(c.diagonal())).square().sum() / dim).backward()
    terms.surrogate.backward()
    torch.testing.assert_close(features.grad.double(), x.grad, rtol=1e-3, atol=1e-6)
    assert float(terms.surrogate.detach()) == 0.0


def test_the_loss_is_float32_or_better_under_autocast():
    config = ObjectiveConfig(regularization="vicreg")
    model = make_model(config).float()
    images, mask, _ = make_batch(16)
    exact = HJEPAObjective(config, WEIGHTS)(model(images.float(), mask))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(images.float(), mask)
        assert output["predictions"][0].dtype == torch.bfloat16
        result = HJEPAObjective(config, WEIGHTS)(output)
    assert {value.dtype for value in result.losses.values()} == {torch.float32}
    assert result.sums.dtype == torch.float64
    assert float(result.losses["loss"]) == pytest.approx(float(exact.losses["loss"]), rel=2e-2)


@pytest.mark.parametrize("normalization", ["batch", "layer"])
def test_whatever_stands_at_padding_changes_nothing(normalization):
    config = ObjectiveConfig(target_normalization=normalization)
    images, mask, valid = make_batch(8, padded=True)
    output = make_model(config)(images, mask, patch_valid=valid)
    clean = HJEPAObjective(config, WEIGHTS)(output)
    for level in ("predictions", "targets"):
        real = output["tokens_valid"]
        output[level] = [torch.where(v[..., None], x, 1e3) for x, v in zip(output[level], real, strict=True)]
    other = HJEPAObjective(config, WEIGHTS)(output)
    assert {k: float(v) for k, v in other.losses.items()} == {k: float(v) for k, v in clean.losses.items()}
