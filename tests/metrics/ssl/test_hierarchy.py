import math

import numpy as np
import pytest
import torch

from hjepa_dist_metrics import ConfigError, HierarchyFeatures, MetricCollection
from tests.helpers.ranks import run_ranks

pytestmark = pytest.mark.accuracy


def batch(seed=0, images=30, shapes=((9, 8), (4, 6)), shift=0.5):
    rng = np.random.default_rng(seed)
    features = [torch.from_numpy(rng.normal(size=(images, *shape)) + shift).float() for shape in shapes]
    valid = [torch.from_numpy(rng.random((images, shape[0])) < 0.7) for shape in shapes]
    return features, valid


def numbers(metric):
    values = metric.compute()
    return {t.removeprefix("hierarchy/"): float(v) for t, v in values.items() if hasattr(v, "value")}


def pooled(features, valid):
    x, v = features.double().numpy(), valid.numpy()
    return np.stack(
        [rows[ok].mean(0) if ok.any() else np.zeros(x.shape[-1]) for rows, ok in zip(x, v, strict=True)]
    )


def cka(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    norm = np.linalg.norm
    return norm(x.T @ y) ** 2 / norm(x.T @ x) / norm(y.T @ y)


def test_equals_numpy_over_the_valid_tokens():
    features, valid = batch()
    metric = HierarchyFeatures([8, 6])
    for part in range(0, 30, 7):
        piece = slice(part, part + 7)
        metric.update([f[piece] for f in features], [v[piece] for v in valid])
    values = numbers(metric)
    for i in range(2):
        rows = features[i].double().numpy()[valid[i].numpy()]
        sigma = np.linalg.svd(rows, compute_uv=False)
        p = sigma / sigma.sum()
        expected = {
            "feat_mean": rows.mean(),
            "feat_std": rows.std(ddof=1),
            "feat_norm": np.linalg.norm(rows, axis=1).mean(),
            "feat_min": rows.min(),
            "feat_max": rows.max(),
            "effective_rank": math.exp(-(p * np.log(p)).sum()),
            "num_tokens": len(rows) / valid[i].any(1).sum().item(),
            "nonfinite": 0,
        }
        got = {name: values[f"level{i}_{name}"] for name in expected}
        assert got == pytest.approx(expected, rel=1e-6)
        histogram = metric.compute()[f"hierarchy/level{i}_features_histogram"]
        assert histogram.count == rows.size
        assert histogram.total == pytest.approx(rows.sum(), rel=1e-9)
        assert histogram.total_squares == pytest.approx((rows**2).sum(), rel=1e-9)
    both = valid[0].any(1).numpy() & valid[1].any(1).numpy()
    expected = cka(*(pooled(f, v)[both] for f, v in zip(features, valid, strict=True)))
    assert values["level1_cka"] == pytest.approx(expected, rel=1e-5)
    assert "level0_cka" not in values


def test_costs_and_memory_add_up_to_100():
    metric = HierarchyFeatures([8, 8, 8])
    metric.update([torch.randn(2, n, 8) for n in (16, 4, 1)])
    values = numbers(metric)
    assert [values[f"level{i}_compute_share"] for i in range(3)] == pytest.approx(
        [1600 / 21, 400 / 21, 100 / 21]
    )
    assert sum(values[f"level{i}_memory_share"] for i in range(3)) == pytest.approx(100)
    given = HierarchyFeatures([8, 8], costs=[3.0, 1.0])
    given.update([torch.randn(2, n, 8) for n in (16, 4)])
    assert numbers(given)["level1_compute_share"] == pytest.approx(25)


def test_a_rank_k_spectrum_and_levels_that_are_alike():
    basis = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0]
    tokens = basis[:5].repeat(20, 1).reshape(10, 10, 16)
    metric = HierarchyFeatures([16, 16])
    rotated = tokens @ basis * 3.0
    metric.update([tokens + torch.arange(10.0)[:, None, None] * basis[7], rotated])
    assert numbers(metric)["level1_effective_rank"] == pytest.approx(5.0, rel=1e-5)
    same = HierarchyFeatures([4, 4])
    x = torch.randn(20, 3, 4)
    same.update([x, 2.0 * x.flip(-1)])
    assert numbers(same)["level1_cka"] == pytest.approx(1.0)


def test_ranks_without_valid_tokens_and_a_job_without_any():
    features, valid = batch()
    nothing = [torch.zeros_like(v) for v in valid]

    def body(context, masks):
        metric = HierarchyFeatures([8, 6])
        metric.update(features, masks[context.rank])
        return {
            t: v for t, v in MetricCollection({"h": metric}, context).compute().items() if hasattr(v, "value")
        }

    alone = HierarchyFeatures([8, 6])
    alone.update(features, valid)
    expected = {tag: float(v) for tag, v in alone.compute().items() if hasattr(v, "value")}
    for values in run_ranks(2, lambda context: body(context, [nothing, valid])):
        assert {tag: float(v) for tag, v in values.items()} == pytest.approx(expected, rel=1e-9)
    assert run_ranks(2, lambda context: body(context, [nothing, nothing])) == [{}, {}]


def test_one_token_of_one_feature_and_nan():
    metric = HierarchyFeatures([1])
    metric.update([torch.full((1, 1, 1), 2.0)])
    values = numbers(metric)
    assert (values["level0_feat_std"], values["level0_effective_rank"]) == (0.0, 1.0)
    metric.update([torch.full((1, 1, 1), math.nan)])
    values = numbers(metric)
    assert math.isnan(values["level0_feat_mean"])
    assert math.isnan(values["level0_effective_rank"])
    assert values["level0_nonfinite"] == 1


@pytest.mark.parametrize(
    ("features", "valid", "message"),
    [
        ([torch.zeros(2, 3, 5)], None, "one entry for each of 2 levels, got 1 features"),
        (
            [torch.zeros(2, 3, 5), torch.zeros(2, 1, 6)],
            None,
            r"level 0: expected features \[B, N, 4\], got shape",
        ),
        ([torch.zeros(2, 3, 4), torch.zeros(2, 6)], None, r"level 1: expected features \[B, N, 6\]"),
        (
            [torch.zeros(2, 3, 4), torch.zeros(2, 1, 6)],
            [torch.ones(2, 4, dtype=torch.bool), None],
            r"level 0: expected valid as \[2, 3\], got \[2, 4\]",
        ),
        ([torch.zeros(2, 3, 4), torch.zeros(3, 1, 6)], None, "levels 0 and 1 have 2 and 3 images"),
    ],
)
def test_wrong_shapes_are_named(features, valid, message):
    with pytest.raises(ConfigError, match=message):
        HierarchyFeatures([4, 6]).update(features, valid)


def test_refuses_levels_and_costs_that_do_not_fit():
    with pytest.raises(ConfigError, match="at least one level"):
        HierarchyFeatures([])
    with pytest.raises(ConfigError, match="expected 2 costs"):
        HierarchyFeatures([4, 4], costs=[1.0])


def test_images_without_tokens_are_no_images():
    generator = torch.Generator().manual_seed(8)
    features = [torch.randn(6, n, 4, generator=generator) for n in (5, 2)]
    alone, both = HierarchyFeatures([4, 4]), HierarchyFeatures([4, 4])
    for metric in (alone, both):
        metric.update(features)
    both.update([torch.zeros(3, 0, 4), torch.zeros(3, 0, 4)])
    expected, found = alone.compute(), both.compute()
    assert found.keys() == expected.keys()
    for tag in expected:
        if "histogram" not in tag:
            assert float(found[tag]) == float(expected[tag]), tag
