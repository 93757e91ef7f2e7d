"""The numbers behind collapse, against brute force and the values that theory gives."""

import math

import numpy as np
import pytest
import torch

from hjepa_dist_metrics import Collapse, MetricCollection
from hjepa_dist_metrics.catalog import effective_rank_limits
from hjepa_dist_metrics.metrics.ssl.formulas.gaussianity import KNOTS, characteristic_sums, directions
from hjepa_dist_metrics.metrics.ssl.formulas.sampled import pair_numbers
from hjepa_dist_metrics.metrics.ssl.formulas.spectrum import lidar, spectral_decay
from tests.helpers.ranks import run_ranks

pytestmark = pytest.mark.accuracy


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def read(rows, **options):
    x = torch.as_tensor(np.asarray(rows))
    metric = Collapse(x.shape[-1], **options)
    metric.update(x)
    return numbers(metric.compute())


def numbers(values):
    return {t.removeprefix("collapse/"): float(v) for t, v in values.items() if hasattr(v, "value")}


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def exp_entropy(weights):
    p = weights[weights > 1e-14 * weights.max()] / weights.sum()
    return math.exp(-(p * np.log(p)).sum())


@pytest.mark.parametrize(("count", "dim"), [(60, 5), (40, 16), (200, 8)])
def test_equals_brute_force(count, dim):
    x = gaussian(count, dim, seed=count) @ np.diag(np.linspace(0.2, 2.0, dim)) + 0.5
    cov, values = np.cov(x.T), read(x)
    spectrum = np.linalg.eigvalsh(cov)
    cosines = (unit(x) @ unit(x).T)[np.triu_indices(count, 1)]
    variance = np.diag(cov)
    t, w = np.linspace(0, 3, KNOTS), np.full(KNOTS, 3 / (KNOTS - 1))
    w[[0, -1]] /= 2
    expected = {
        "rankme": exp_entropy(np.linalg.svd(x, compute_uv=False)),
        "participation_ratio": spectrum.sum() ** 2 / (spectrum**2).sum(),
        "stable_rank": spectrum.sum() / spectrum[-1],
        "std_similarity": cosines.std(),
        "vicreg_variance": np.maximum(1 - np.sqrt(variance + 1e-4), 0).mean(),
        "vicreg_covariance": ((cov**2).sum() - (variance**2).sum()) / dim,
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    # the sample is kept in float32
    assert values["uniformity"] == pytest.approx(math.log(np.exp(-2 * (2 - 2 * cosines)).mean()), rel=1e-5)
    # in one dimension there is one direction
    wave = np.exp(1j * t[:, None] * x[:, 0]).mean(axis=1)
    error = np.abs(wave - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2)
    assert read(x[:, :1])["sigreg"] == pytest.approx(2 * count * (w * error).sum(), rel=1e-9)


@pytest.mark.parametrize("far", [0.0, 1.0, 1e2, 1e4])
@pytest.mark.parametrize("zeros", [0, 3])
def test_the_spread_of_cosines_keeps_its_digits_near_a_point(far, zeros):
    x = gaussian(50, 6, seed=3) + far
    x[:zeros] = 0.0
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    u = (x / np.where(lengths == 0, 1, lengths)).astype(np.longdouble)
    cosines = (u @ u.T)[np.triu_indices(50, 1)]
    assert read(x)["std_similarity"] == pytest.approx(float(cosines.std()), rel=1e-6)


def test_alike_rows_have_no_spread_of_cosines():
    assert read(np.ones((20, 4)))["std_similarity"] == 0.0
    assert read(np.ones((1, 4)))["std_similarity"] == 0.0
    half = np.repeat([[1.0, 0.0], [0.0, 1.0]], 8, axis=0)  # cosines 0 and 1
    ones = 2 * 8 * 7 / 2
    share = ones / (16 * 15 / 2)
    assert read(half)["std_similarity"] == pytest.approx(math.sqrt(share * (1 - share)), rel=1e-12)


def test_waves_are_sums_of_cosines_and_sines():
    x = torch.from_numpy(gaussian(30, 4, seed=2))
    angles = np.linspace(0, 3, KNOTS)[1:, None, None] * (x @ directions(4, x.device)).numpy()
    expected = np.stack([np.cos(angles).sum(1), np.sin(angles).sum(1)])
    np.testing.assert_allclose(characteristic_sums(x).numpy(), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(characteristic_sums(x.float()).numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("count", "dim", "rank"), [(25600, 64, 63.98), (1024, 256, 247.3)])
def test_rankme_of_a_gaussian(count, dim, rank):
    assert read(gaussian(count, dim).astype(np.float32))["rankme"] == pytest.approx(rank, rel=1e-3)


def test_ratios_of_a_gaussian_are_those_of_its_size():
    values = read(gaussian(2048, 64))
    assert values["participation_ratio"] == pytest.approx(1 / (1 / 2048 + 1 / 64), rel=0.01)
    assert values["std_similarity"] == pytest.approx(math.sqrt(1 / 64), rel=0.01)
    assert values["sigreg"] == pytest.approx(1.05, abs=0.5)


@pytest.mark.parametrize("count", [50, 400])
def test_sigreg_of_gaussians_has_its_null_mean_at_any_count(count):
    drawn = [read(gaussian(count, 8, seed=s))["sigreg"] for s in range(40)]
    error = np.std(drawn) / math.sqrt(len(drawn))
    assert abs(np.mean(drawn) - 1.05246) < 4 * error
    assert read(3.0 * gaussian(count, 8))["sigreg"] > 5 * 1.05


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_the_decay_of_a_power_law_is_exact(alpha):
    spectrum = torch.arange(1, 65, dtype=torch.float64).pow(-alpha).flip(0)
    assert spectral_decay(3.0 * spectrum) == (pytest.approx(alpha), pytest.approx(1.0))
    orthogonal = np.linalg.qr(gaussian(300, 64) - gaussian(300, 64).mean(0))[0]
    rows = (orthogonal - orthogonal.mean(0)) @ np.diag(np.arange(1.0, 65) ** (-alpha / 2))
    assert read(rows)["alpha_req"] == pytest.approx(alpha, abs=0.05)


def test_no_decay_is_told_of_a_deficient_or_short_spectrum():
    assert "alpha_req" not in read(gaussian(20, 64))
    assert "alpha_req" not in read(gaussian(50, 4))
    assert spectral_decay(torch.ones(64, dtype=torch.float64)) == (pytest.approx(0.0), 1.0)


@pytest.mark.parametrize(("dim", "value"), [(2, -1.5750), (3, -2.0798), (64, -3.8752), (768, -3.98958)])
def test_uniformity_of_the_sphere(dim, value):
    rows = torch.from_numpy(unit(gaussian(2000, dim)))
    assert pair_numbers(rows)["uniformity"] == pytest.approx(value, abs=0.01)


def test_lidar_of_isotropic_and_rank_deficient_classes():
    means, noise = gaussian(1000, 32, seed=3), gaussian(1000, 10, 32, seed=4)
    assert read(means[:, None] + noise)["lidar"] == pytest.approx(31.4, abs=0.3)
    basis = np.linalg.qr(gaussian(32, 4, seed=5))[0]
    deficient = (30 * gaussian(1000, 4, seed=6) @ basis.T)[:, None] + noise
    assert read(deficient)["lidar"] == pytest.approx(3.996, abs=0.05)


def test_lidar_and_the_ratio_equal_brute_force():
    x = gaussian(40, 6, 5, seed=7) + 2 * gaussian(40, 1, 5, seed=8)
    mean = x.mean(1)
    between = np.cov(mean.T)
    residual = (x - mean[:, None]).reshape(-1, 5)
    within = residual.T @ residual / (40 * 5)
    values = read(x)
    assert values["between_within_ratio"] == pytest.approx(np.trace(between) / np.trace(within), rel=1e-9)
    w, v = np.linalg.eigh(within + 1e-4 * np.eye(5))
    whitening = v @ np.diag(w**-0.5) @ v.T
    spectrum = np.linalg.eigvalsh(whitening @ between @ whitening)
    p = spectrum / spectrum.sum() + 1e-8
    assert values["lidar"] == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-9)
    assert lidar(torch.zeros(3, dtype=torch.float64)) == 1.0


def test_two_collapses_of_one_tensor():
    """Tokens that say only where they are: spread out over tokens, one point over images."""
    position = gaussian(1, 16, 32)
    x = position + 1e-4 * gaussian(50, 16, 32, seed=1)
    values = read(x)
    assert values["mean_std_per_dim"] > 0.5 / math.sqrt(32)
    assert values["pooled_mean_std_per_dim"] < 0.03 / math.sqrt(32)
    assert values["pooled_mean_similarity"] == pytest.approx(1.0, abs=1e-6)
    assert values["between_within_ratio"] < 1e-6
    assert (values["num_samples"], values["pooled_num_samples"]) == (800, 50)


@pytest.mark.parametrize("rows", [np.ones((10, 4)), np.zeros((10, 4)), np.ones((5, 3, 4))])
def test_constant_features_have_defined_values(rows):
    values = read(rows)
    assert all(math.isfinite(value) for value in values.values())
    for name in ("effective_rank", "participation_ratio", "stable_rank"):
        assert values[name] == 1.0
    assert values["uniformity"] == pytest.approx(0.0, abs=1e-6)
    assert values["is_constant"] == 1.0
    assert values["mean_similarity"] == pytest.approx(1.0)  # of zeros too: a run of zeros is no healthy one


def test_one_row_and_one_dimension():
    assert read(gaussian(1, 4))["participation_ratio"] == 1.0
    values = read(gaussian(20, 1))
    assert (values["effective_rank"], values["stable_rank"], values["rankme"]) == (1.0, 1.0, 1.0)
    assert values["vicreg_covariance"] == 0.0


def test_nan_is_a_finding():
    x = gaussian(10, 3, 4)
    x[2, 1, 3] = math.nan
    values = read(x)
    assert values["nonfinite"] == 1
    for name in ("effective_rank", "rankme", "stable_rank", "sigreg", "uniformity", "lidar"):
        assert math.isnan(values[name]), name


@pytest.mark.parametrize("short", ["context", "target"])
def test_the_short_list_is_of_images(short):
    x = gaussian(30, 4, 6) + 1.0
    values = read(x, short=short)
    images = x.mean(1)
    spectrum = np.linalg.eigvalsh(np.cov(unit(images).T))
    expected = {
        f"train/{short}_std": images.std(axis=0, ddof=1).mean(),
        f"train/{short}_norm": np.linalg.norm(images, axis=1).mean(),
        f"train/{short}_rank": exp_entropy(spectrum),
    }
    assert {tag: values[tag] for tag in expected} == pytest.approx(expected, rel=1e-9)
    flat = read(images, short=short)
    assert {tag: flat[tag] for tag in expected} == pytest.approx(expected, rel=1e-9)


def test_half_the_table():
    values = read(gaussian(30, 4, 6), full=False)
    assert "effective_rank" in values
    assert not {"rankme", "lidar", "pooled_effective_rank", "sigreg"} & set(values)


def over_ranks(shares):
    def body(context):
        metric = Collapse(64)
        metric.update(torch.from_numpy(shares[context.rank]))
        return numbers(metric.compute()), numbers(MetricCollection({"c": metric}, context).compute())

    return run_ranks(len(shares), body)


def test_each_rank_collapsed_to_its_own_point():
    """Alone each reads a spread of 0; the job has two points."""
    for alone, job in over_ranks([np.tile(point, (32, 4, 1)) for point in gaussian(2, 1, 1, 64)]):
        assert (alone["mean_std_per_dim"], alone["is_constant"]) == (0.0, 1.0)
        assert (alone["effective_rank"], alone["pooled_mean_similarity"]) == (1.0, pytest.approx(1.0))
        assert job["mean_std_per_dim"] > 0.03
        assert job["effective_rank"] == pytest.approx(1.0, abs=1e-6)
        assert job["is_constant"] == 0.0


def verdict(values):
    return effective_rank_limits(64, int(values["num_samples"])).judge(values["effective_rank"])


def test_each_rank_looks_healthy_but_the_job_is_deficient():
    """Five rows show at most four directions: three of them look fine, until all ranks have the same."""
    basis = np.linalg.qr(gaussian(64, 3))[0]
    for alone, job in over_ranks([gaussian(5, 3, seed=s) @ basis.T for s in range(13)]):
        assert (verdict(alone), verdict(job)) == ("ok", "bad")
        assert job["effective_rank"] == pytest.approx(3.0, abs=0.1)
