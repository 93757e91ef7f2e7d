import math

import numpy as np
import pytest
import torch

from hjepa_dist_metrics import ConfigError, MetricCollection, PredictionQuality
from hjepa_dist_metrics.metrics.ssl.prediction import extremes, gram_matrices
from tests.helpers.ranks import run_ranks

pytestmark = pytest.mark.accuracy

SHAPES = ((9, 8), (4, 6))


def batch(seed=0, images=20):
    rng = np.random.default_rng(seed)

    def draw():
        return [torch.from_numpy(rng.normal(size=(images, *s)) + 0.3).float() for s in SHAPES]

    valid = [torch.from_numpy(rng.random((images, s[0])) < 0.6) for s in SHAPES]
    return draw(), draw(), valid


def numbers(values):
    return {t: float(v) for t, v in values.items() if hasattr(v, "value")}


def rows_of(tensor, valid):
    return tensor.double().numpy()[valid.numpy()]


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_equals_numpy_over_the_valid_tokens():
    predictions, targets, valid = batch()
    metric = PredictionQuality(2, dims=[8, 6])
    for part in range(0, 20, 6):
        piece = slice(part, part + 6)
        metric.update(*([t[piece] for t in group] for group in (predictions, targets, valid)))
    values = metric.compute()
    means, counts = [], []
    for i in range(2):
        p, t = rows_of(predictions[i], valid[i]), rows_of(targets[i], valid[i])
        cosine = (unit(p) * unit(t)).sum(1)
        pc, tc = p - p.mean(0), t - t.mean(0)
        norm = np.linalg.norm
        expected = {
            "cosine_sim_mean": cosine.mean(),
            "cosine_sim_std": cosine.std(ddof=1),
            "cosine_sim_min": cosine.min(),
            "cosine_sim_max": cosine.max(),
            "normalized_mse": ((unit(p) - unit(t)) ** 2).mean(),
            "l2_distance": norm(p - t, axis=1).mean(),
            "num_tokens": len(p),
            "nonfinite": 0,
            "cka": norm(pc.T @ tc) ** 2 / norm(pc.T @ pc) / norm(tc.T @ tc),
        }
        got = {name: float(values[f"prediction/level{i}_{name}"]) for name in expected}
        assert got == pytest.approx(expected, rel=1e-5)
        counted = values[f"prediction/level{i}_similarity_histogram"].counts
        np.testing.assert_array_equal(counted, np.histogram(cosine, np.linspace(-1, 1, 65))[0])
        assert float(values[f"collapse/level{i}_alignment"]) == pytest.approx(2 - 2 * cosine.mean(), rel=1e-5)
        means.append(cosine.mean())
        counts.append(len(p))
    expected = 2 - 2 * np.average(means, weights=counts)
    assert float(values["collapse/alignment"]) == pytest.approx(expected, rel=1e-5)


def test_identical_opposite_and_zero():
    x = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0))
    for other, cosine, error in ((x, 1.0, 0.0), (-x, -1.0, 4 / 8), (torch.zeros_like(x), 0.0, 1 / 8)):
        metric = PredictionQuality(1, dims=[8])
        metric.update([other], [x])
        values = numbers(metric.compute())
        assert values["prediction/level0_cosine_sim_mean"] == pytest.approx(cosine, abs=1e-6)
        assert values["prediction/level0_normalized_mse"] == pytest.approx(error, abs=1e-6)
        assert values["collapse/alignment"] == pytest.approx(2 - 2 * cosine, abs=1e-6)
        assert values["prediction/level0_cka"] == pytest.approx(abs(cosine), abs=1e-6)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_hardest_and_easiest_patches_of_all_ranks(world_size):
    predictions, targets, valid = batch(seed=3)

    def body(context):
        metric = PredictionQuality(2, patches=3)
        mine = slice(context.rank, None, world_size)
        groups = ([t[mine] for t in group] for group in (predictions, targets, valid))
        metric.update(*groups, ids=torch.arange(100, 120)[mine])
        return MetricCollection({"p": metric}, context).compute(lambda _, merged: merged["p"])

    cosine = torch.cosine_similarity(predictions[0].double(), targets[0].double(), dim=-1)
    places = sorted((float(cosine[i, j]), 100 + i, j) for i, j in valid[0].nonzero().tolist())
    for states in run_ranks(world_size, body):
        (low, hardest), (high, easiest) = extremes(states, 0)
        assert hardest.tolist() == [list(place[1:]) for place in places[:3]]
        assert easiest.tolist() == [list(place[1:]) for place in places[:-4:-1]]
        assert low == pytest.approx([place[0] for place in places[:3]], rel=1e-5)
        assert high == pytest.approx([place[0] for place in places[:-4:-1]], rel=1e-5)


def test_the_gram_matrices_are_correlations():
    predictions, targets, valid = batch(seed=4)
    predictions[0][..., 2] = 1.0  # a dead feature
    metric = PredictionQuality(2, dims=[8, 6])
    metric.update(predictions, targets, valid)
    grams = gram_matrices(metric.states, 0)
    expected = np.corrcoef(rows_of(targets[0], valid[0]).T)
    np.testing.assert_allclose(grams["target"], expected, atol=1e-9)
    assert grams["prediction"].shape == (8, 8)
    assert not grams["prediction"][2].any()


def test_text_names_image_and_patch():
    metric = PredictionQuality(1)
    metric.update([torch.tensor([[[1.0, 0.0]]])], [torch.tensor([[[0.6, 0.8]]])], ids=torch.tensor([77]))
    text = metric.compute()["prediction/level0_extreme_patches"].markdown
    assert "| hardest | 77 | 0 | 0.6000 |" in text
    assert "| easiest | 77 | 0 | 0.6000 |" in text


def test_nothing_valid_on_one_rank_or_on_all():
    predictions, targets, valid = batch()
    nothing = [torch.zeros_like(v) for v in valid]

    def body(context, masks):
        metric = PredictionQuality(2, dims=[8, 6])
        metric.update(predictions, targets, masks[context.rank], ids=torch.arange(20))
        return numbers(MetricCollection({"p": metric}, context).compute())

    alone = PredictionQuality(2, dims=[8, 6])
    alone.update(predictions, targets, valid, ids=torch.arange(20))
    for values in run_ranks(2, lambda context: body(context, [nothing, valid])):
        assert values == pytest.approx(numbers(alone.compute()), rel=1e-9)
    assert run_ranks(2, lambda context: body(context, [nothing, nothing])) == [{}, {}]


def test_one_token_one_feature_and_nan():
    metric = PredictionQuality(1, dims=[1])
    metric.update([torch.full((1, 1, 1), 3.0)], [torch.full((1, 1, 1), 2.0)])
    values = numbers(metric.compute())
    assert (values["prediction/level0_cosine_sim_std"], values["prediction/level0_cka"]) == (0.0, 0.0)
    metric.update([torch.full((1, 1, 1), math.nan)], [torch.ones(1, 1, 1)])
    values = numbers(metric.compute())
    assert math.isnan(values["prediction/level0_cosine_sim_mean"])
    assert math.isnan(values["prediction/level0_cka"])
    assert values["prediction/level0_nonfinite"] == 1


def test_bf16_is_compared_in_float32():
    x, y = torch.randn(3, 4, 8).bfloat16(), torch.randn(3, 4, 8).bfloat16()
    metric = PredictionQuality(1)
    metric.update([x], [y])
    p, t = (unit(z.double().numpy().reshape(-1, 8)) for z in (x, y))
    expected = (p * t).sum(1).mean()
    assert float(metric.compute()["prediction/level0_cosine_sim_mean"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": []}, "one entry for each of 1 levels, got 1 predictions, 0 targets and 1 masks"),
        (
            {"targets": [torch.zeros(2, 4, 4)]},
            r"prediction and target \[B, N, 4\], got \[2, 3, 4\] and \[2, 4, 4\]",
        ),
        ({"valid": [torch.ones(2, 4)]}, r"expected valid as \[2, 3\], got \[2, 4\]"),
        ({"ids": torch.zeros(3)}, r"ids of shape \[2\], got \[3\]"),
    ],
)
def test_wrong_shapes_are_named(change, message):
    given = {"predictions": [torch.zeros(2, 3, 4)], "targets": [torch.zeros(2, 3, 4)], **change}
    with pytest.raises(ConfigError, match=message):
        PredictionQuality(1, dims=[4]).update(**given)


def test_refuses_levels_that_do_not_fit():
    with pytest.raises(ConfigError, match="1 or more, got num_levels=0"):
        PredictionQuality(0)
    with pytest.raises(ConfigError, match="expected 2 dims"):
        PredictionQuality(2, dims=[4])
