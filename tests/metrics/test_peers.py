"""Our numbers against those that peers' packages make of the same data."""

import warnings

import numpy as np
import pytest
import torch
from jepa_science.sigreg import sigreg_loss
from torchmetrics.functional.image import peak_signal_noise_ratio
from torchmetrics.functional.pairwise import pairwise_cosine_similarity
from torchmetrics.functional.regression import cosine_similarity, explained_variance
from torchmetrics.functional.retrieval import retrieval_hit_rate

from hjepa_dist_metrics.metrics import Collapse, ModalityAlignment, PredictionQuality, psnr
from hjepa_dist_metrics.metrics.ssl.formulas.gaussianity import directions
from hjepa_dist_metrics.states import Covariance, Moments

with warnings.catch_warnings():  # it compiles by torch.jit, which torch has deprecated
    warnings.simplefilter("ignore", DeprecationWarning)
    from torcheval.metrics.functional import (
        mean_squared_error,
        peak_signal_noise_ratio as eval_psnr,
        r2_score,
    )

pytestmark = pytest.mark.accuracy


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numbers(metric):
    return {tag: float(value) for tag, value in metric.compute().items() if hasattr(value, "value")}


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("count", "dim"), [(40, 1), (64, 8), (200, 24)])
def test_sigreg_is_the_sliced_epps_pulley_statistic(count, dim, scale):
    """The peer draws directions of its own; of one-dimensional rows there is only one, up to its sign."""
    x = scale * rows(count, dim) + 0.1
    metric = Collapse(dim)
    for part in x.split(17):
        metric.update(part)
    projected = x @ directions(dim, x.device)
    each = [sigreg_loss(column[:, None], num_slices=1, n_knots=17, t_max=3.0) for column in projected.T]
    assert numbers(metric)["collapse/sigreg"] == pytest.approx(float(torch.stack(each).mean()), rel=1e-9)


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_cosines_are_those_of_torchmetrics(offset):
    x = rows(60, 7) + offset
    metric = Collapse(7)
    metric.update(x)
    above = pairwise_cosine_similarity(x)[np.triu_indices(60, 1)]  # in float32
    got = numbers(metric)
    assert got["collapse/mean_similarity"] == pytest.approx(float(above.mean()), abs=1e-7)
    assert got["collapse/std_similarity"] == pytest.approx(float(above.std(correction=0)), abs=1e-7)
    prediction = PredictionQuality(1)
    prediction.update([x[None]], [x.roll(1, 0)[None]])
    mean = cosine_similarity(x, x.roll(1, 0), reduction="mean")
    assert numbers(prediction)["prediction/level0_cosine_sim_mean"] == pytest.approx(float(mean), abs=1e-7)


def test_psnr_is_that_of_torchmetrics_and_torcheval():
    prediction, target = torch.rand(5, 3, 8, 8), torch.rand(5, 3, 8, 8)
    got = psnr(prediction, target)
    expected = peak_signal_noise_ratio(prediction, target, data_range=1.0, dim=(1, 2, 3), reduction="none")
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    one = eval_psnr(prediction[:1], target[:1], data_range=1.0)
    assert float(got[0]) == pytest.approx(float(one), rel=1e-6)


def test_moments_give_torchevals_and_torchmetrics_scores():
    """R^2 and explained variance of a prediction, from the moments of its residual and of its target."""
    target, noise = rows(300), 0.3 * rows(300, seed=1) + 0.1
    residual, whole = Moments(), Moments()
    for part, other in zip(noise.split(70), target.split(70), strict=True):
        residual.update(part)
        whole.update(other)
    prediction = target + noise
    variance = residual.variance * 299 / 300
    squared = variance + residual.mean**2
    assert squared == pytest.approx(float(mean_squared_error(prediction, target)), rel=1e-9)
    assert 1 - squared / (whole.variance * 299 / 300) == pytest.approx(
        float(r2_score(prediction, target)), rel=1e-9
    )
    assert 1 - residual.variance / whole.variance == pytest.approx(
        float(explained_variance(prediction, target)), rel=1e-9
    )


def test_the_covariance_is_torchs():
    x = rows(90, 6) @ rows(6, 6, seed=2) + 100.0
    state = Covariance(6)
    for part in x.split(31):
        state.update(part)
    np.testing.assert_allclose(state.matrix, torch.cov(x.T), rtol=1e-9)


@pytest.mark.parametrize("k", [1, 5])
def test_recall_is_the_hit_rate_of_torchmetrics(k):
    text, image = rows(40, 4), rows(40, 4) + 0.5 * rows(40, 4, seed=3)
    metric = ModalityAlignment(["text", "image"])
    metric.update({"text": text, "image": image}, ids=torch.arange(40))
    similarity, own = pairwise_cosine_similarity(text, image), torch.eye(40, dtype=torch.bool)
    hits = [retrieval_hit_rate(similarity[i], own[i], top_k=k) for i in range(40)]
    got = numbers(metric)[f"alignment/text_vs_image/recall_at_{k}_text_to_image"]
    assert got == pytest.approx(float(torch.stack(hits).mean()), abs=1e-9)
