"""Numbers that tell an offset, dead features, clusters and duplicates apart, against brute force."""

import math

import numpy as np
import pytest
import torch

from hjepa_dist_metrics import Collapse, HierarchyFeatures, MetricCollection, PredictionQuality, ViewAgreement
from tests.helpers.ranks import run_ranks

pytestmark = pytest.mark.accuracy


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def entropy_rank(weights):
    p = weights / weights.sum()
    p = p[p > 1e-14]
    return math.exp(-(p * np.log(p)).sum())


def numbers(metric):
    return {tag: float(value) for tag, value in metric.compute().items() if hasattr(value, "value")}


def read(rows, **options):
    metric = Collapse(rows.shape[-1], **options)
    metric.update(torch.as_tensor(rows))
    return {tag.removeprefix("collapse/"): value for tag, value in numbers(metric).items()}


def mean_cosine_about_the_mean(rows):
    u = unit(rows)
    d = unit(u - u.mean(axis=0))
    return (d @ d.T)[np.triu_indices(len(d), 1)].mean()


@pytest.mark.parametrize("offset", [0.0, 2.0, 100.0])
def test_an_offset_is_no_collapse(offset):
    x = gaussian(300, 12, seed=1) @ np.diag(np.linspace(0.5, 2.0, 12)) + offset
    values = read(x)
    expected = {
        "rankme_centered": entropy_rank(np.linalg.svd(x - x.mean(0), compute_uv=False)),
        "mean_share": (x.mean(0) ** 2).sum() / (x**2).sum(axis=1).mean(),
        "dead_features": 0,
        "duplicate_share": 0.0,
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    # the sample is kept in float32
    assert values["centered_similarity"] == pytest.approx(mean_cosine_about_the_mean(x), abs=1e-5)
    assert values["rankme_centered"] > 10
    assert (values["mean_similarity"] > 0.9) == (offset >= 100.0) == (values["rankme"] < 3)


def test_a_point_with_few_rows_apart_has_a_high_cosine_about_the_mean():
    x = np.concatenate([np.tile(gaussian(1, 16), (180, 1)), gaussian(20, 16, seed=1)])
    assert read(x)["centered_similarity"] == pytest.approx(mean_cosine_about_the_mean(x), abs=1e-5)
    assert read(x)["centered_similarity"] > 0.5


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_dead_features_are_counted_at_any_scale(scale, constant):
    x = gaussian(200, 10)
    x[:, [1, 4, 7]] = constant
    assert read((scale * x).astype(np.float32))["dead_features"] == 3


def test_constant_rows_are_dead_and_duplicates():
    values = read(np.full((40, 5), 0.3, dtype=np.float32))
    assert (values["dead_features"], values["duplicate_share"]) == (5, 1.0)
    assert (values["centered_similarity"], values["rankme_centered"]) == (0.0, 1.0)
    assert values["mean_share"] == pytest.approx(1.0)
    assert read(np.zeros((4, 5)))["mean_share"] == 0.0


@pytest.mark.parametrize("noise", [0.0, 1e-5])
def test_duplicates_are_counted(noise):
    ten = gaussian(10, 8)
    clusters = ten[np.arange(90) % 9] + noise * gaussian(90, 8, seed=1)
    x = np.concatenate([clusters, gaussian(60, 8, seed=2)])
    assert read(x)["duplicate_share"] == pytest.approx(90 / 150)
    assert read(x + 100.0)["duplicate_share"] == pytest.approx(90 / 150)


def test_images_have_witnesses_of_their_own():
    tokens = 3.0 * gaussian(1, 8, 6) + gaussian(50, 1, 6, seed=1) + gaussian(50, 8, 6, seed=2)
    images = tokens.mean(axis=1)
    values, expected = read(tokens), read(images)
    for name in ("rankme", "mean_share", "uniformity", "centered_similarity", "duplicate_share"):
        assert values[f"pooled_{name}"] == pytest.approx(expected[name], rel=1e-6, abs=1e-9), name
    same = read(np.tile(tokens[:1], (50, 1, 1)))
    assert same["pooled_duplicate_share"] == 1.0
    assert same["pooled_uniformity"] == pytest.approx(0.0, abs=1e-12)


def test_nan_is_a_finding():
    x = gaussian(20, 4, 3)
    x[3, 1, 2] = math.nan
    values = read(x)
    for name in ("rankme_centered", "mean_share", "dead_features", "centered_similarity", "duplicate_share"):
        assert math.isnan(values[name]), name
    assert math.isnan(values["pooled_rankme"])
    assert math.isnan(values["pooled_uniformity"])


def unbiased_cka(x, y):
    """Song et al. (2012): HSIC without its diagonal terms, from kernel matrices."""

    def hsic(k, k2):
        n, one = len(k), np.ones(len(k))
        k, k2 = k - np.diag(np.diag(k)), k2 - np.diag(np.diag(k2))
        middle = (one @ k @ one) * (one @ k2 @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ k2) + middle - 2 / (n - 2) * (one @ k @ k2 @ one)) / (n * (n - 3))

    k, k2 = x @ x.T, y @ y.T
    return hsic(k, k2) / math.sqrt(hsic(k, k) * hsic(k2, k2))


@pytest.mark.parametrize(
    ("offset", "scale"), [(0.0, 1.0), (3.0, 1.0), (1e4, 1e-3), (0.0, 1e-150), (0.0, 1e150)]
)
def test_debiased_cka_is_the_unbiased_one(offset, scale):
    levels = [scale * gaussian(40, 1, d, seed=d) + offset for d in (7, 5)]
    levels[1][..., :3] += 0.7 * (levels[0][..., :3] - offset)
    shares = [[torch.from_numpy(level[part]) for level in levels] for part in (slice(0, 9), slice(9, 40))]

    def body(context):
        metric = HierarchyFeatures([7, 5])
        for start in range(0, len(shares[context.rank][0]), 6):
            metric.update([level[start : start + 6] for level in shares[context.rank]])
        return MetricCollection({"h": metric}, context).compute()

    x, y = ((level[:, 0] - level[:, 0].mean(0)) / scale for level in levels)
    for values in run_ranks(2, body):
        assert float(values["hierarchy/level1_cka_debiased"]) == pytest.approx(unbiased_cka(x, y), rel=1e-7)


def test_independent_levels_read_near_zero():
    levels = [torch.from_numpy(gaussian(64, 1, 384, seed=seed)) for seed in range(2)]
    metric = HierarchyFeatures([384, 384])
    metric.update(levels)
    values = numbers(metric)
    assert values["hierarchy/level1_cka"] > 0.8
    assert abs(values["hierarchy/level1_cka_debiased"]) < 0.05


def test_predictions_have_a_debiased_cka():
    x = gaussian(30, 1, 6)
    y = x @ gaussian(6, 6, seed=1) + gaussian(30, 1, 6, seed=2)
    metric = PredictionQuality(1, [6])
    metric.update([torch.from_numpy(x)], [torch.from_numpy(y)])
    assert numbers(metric)["prediction/level0_cka_debiased"] == pytest.approx(
        unbiased_cka(x[:, 0], y[:, 0]), rel=1e-9
    )
    few = PredictionQuality(1, [6])
    few.update([torch.from_numpy(x[:3])], [torch.from_numpy(y[:3])])
    assert "prediction/level0_cka_debiased" not in numbers(few)


def test_a_level_that_averages_the_one_below_has_no_cka():
    """Its images' means are those of the level below: CKA would be 1 at every step of any run."""
    fine = torch.from_numpy(gaussian(30, 8, 6)).float() + 5.0
    coarse = fine.reshape(30, 4, 2, 6).mean(2)
    averages, other = HierarchyFeatures([6, 6, 6]), HierarchyFeatures([6, 6])
    averages.update([fine, coarse, coarse.flip(1)])
    other.update([fine, coarse.tanh()])
    values = numbers(averages)
    assert not {"hierarchy/level1_cka", "hierarchy/level1_cka_debiased"} & set(values)
    assert values["hierarchy/level2_cka"] == pytest.approx(1.0)  # as many tokens, by no construction
    assert numbers(other)["hierarchy/level1_cka"] < 0.99


def test_views_are_members_and_samples_classes():
    x = gaussian(40, 1, 5, seed=7) + 0.5 * gaussian(40, 4, 5, seed=8)
    metric = ViewAgreement(5)
    for part in torch.from_numpy(x).split(11):
        metric.update(part)
    values = {tag.removeprefix("collapse/views_"): value for tag, value in numbers(metric).items()}
    tokens = read(x)
    for name in ("lidar", "between_within_ratio"):
        assert values[name] == pytest.approx(tokens[name], rel=1e-9)
    u = unit(x)
    pairs = [((u[:, i] - u[:, j]) ** 2).sum(-1) for i in range(4) for j in range(i)]
    assert values["alignment"] == pytest.approx(np.mean(pairs), rel=1e-9)
    assert values["num_samples"] == 40


def test_views_may_be_missing():
    x = torch.from_numpy(gaussian(6, 3, 4))
    valid = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 1], [1, 1, 1]], dtype=torch.bool)
    x[~valid] = math.nan
    metric = ViewAgreement(4)
    metric.update(x, valid)
    values = numbers(metric)
    assert (values["collapse/views_num_samples"], values["collapse/views_nonfinite"]) == (4, 0)
    per_sample = []
    for rows, kept in zip(x.numpy(), valid.numpy(), strict=True):
        u = unit(rows[kept])
        pairs = [((a - b) ** 2).sum() for i, a in enumerate(u) for b in u[:i]]
        per_sample += [np.mean(pairs)] if pairs else []
    assert values["collapse/views_alignment"] == pytest.approx(np.mean(per_sample), rel=1e-9)
    alone = ViewAgreement(4)
    alone.update(x[:, :1], valid[:, :1])
    assert alone.compute() == {}


def nearest_over_usual(rows):
    u = unit(rows)
    d = np.linalg.norm(u[:, None] - u[None], axis=-1)
    usual = math.sqrt((d**2).sum() / (len(u) * (len(u) - 1)))
    return np.sort((d + np.diag(np.full(len(u), np.inf))).min(axis=1))[(len(u) - 1) // 2] / usual


@pytest.mark.parametrize("noise", [1.0, 0.03])
def test_clusters_are_near_their_neighbours(noise):
    x = gaussian(10, 64)[np.arange(200) % 10] + noise * gaussian(200, 64, seed=1)
    assert read(x)["neighbor_distance"] == pytest.approx(nearest_over_usual(x), rel=1e-5)
    assert (read(x)["neighbor_distance"] < 0.1) == (noise < 0.1)


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_the_size_of_rows_scales(scale):
    x = gaussian(50, 4, 6)
    expected = scale * math.sqrt((x**2).sum(axis=-1).mean())
    assert read((scale * x).astype(np.float32))["rms_norm"] == pytest.approx(expected, rel=1e-6, abs=0)
