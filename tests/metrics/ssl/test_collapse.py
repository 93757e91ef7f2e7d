import math

import numpy as np
import pytest
import torch

from hjepa_dist_metrics import Collapse, ConfigError, MetricCollection
from tests.helpers.ranks import run_ranks

pytestmark = pytest.mark.accuracy


def numbers(metric_or_values):
    values = metric_or_values.compute() if isinstance(metric_or_values, Collapse) else metric_or_values
    return {tag: value.value for tag, value in values.items() if hasattr(value, "value")}


def oracle(rows):
    """Brute force in float64 on the concatenated rows."""
    x = np.asarray(rows, dtype=np.float64)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    unit = x / np.maximum(norm, 1e-12)
    std = unit.std(axis=0, ddof=1)
    eigenvalues = np.linalg.eigvalsh(np.cov(unit.T))
    p = np.clip(eigenvalues, 0, None) / eigenvalues.sum()
    p = p[p > 1e-15]
    gram = unit @ unit.T
    pairs = gram[np.triu_indices(len(x), 1)]
    return {
        "collapse/mean_std_per_dim": std.mean(),
        "collapse/min_std_per_dim": std.min(),
        "collapse/effective_rank": math.exp(-(p * np.log(p)).sum()),
        "collapse/mean_similarity": pairs.mean(),
        "collapse/max_similarity": pairs.max(),
    }


@pytest.mark.parametrize(("count", "dim"), [(200, 8), (50, 64), (400, 3)])
def test_equals_brute_force(count, dim):
    rows = np.random.default_rng(count).normal(size=(count, dim)) + 0.3
    metric = Collapse(dim)
    for part in torch.from_numpy(rows).split(17):
        metric.update(part)
    values = numbers(metric)
    for tag, expected in oracle(rows).items():
        # the largest similarity comes from the sample, which is kept in float32
        tolerance = 1e-6 if tag.endswith("max_similarity") else 1e-9
        assert values[tag] == pytest.approx(expected, rel=tolerance), tag


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_same_at_every_world_size(world_size):
    rows = np.random.default_rng(1).normal(size=(300, 16)).astype(np.float32)
    rows[:, 0] += 2.0
    cuts = sorted(np.random.default_rng(world_size).integers(0, 300, world_size - 1))
    shares = np.split(rows, cuts)

    def body(context):
        metric = Collapse(16, sample=64)
        for part in torch.from_numpy(shares[context.rank]).split(13):
            metric.update(part)
        return MetricCollection({"c": metric}, context).compute()

    alone = Collapse(16, sample=64)
    alone.update(torch.from_numpy(rows))
    expected = alone.compute()
    for result in run_ranks(world_size, body):
        for tag, value in numbers(result).items():
            # float32 rows are turned to waves in float32
            tolerance = 1e-6 if tag.endswith("sigreg") else 1e-9
            assert value == pytest.approx(expected[tag].value, rel=tolerance), tag
        histogram = result["collapse/similarity_histogram"]
        np.testing.assert_array_equal(histogram.counts, expected["collapse/similarity_histogram"].counts)
        assert histogram.count == 64 * 63 // 2


def test_two_ranks_collapsed_to_their_own_points():
    """Each rank alone reads std 0 and rank 1; the job has two points."""
    points = torch.eye(4)[:2]

    def body(context):
        metric = Collapse(4)
        metric.update(points[context.rank].expand(50, 4))
        return numbers(MetricCollection({"c": metric}, context).compute())

    for values in run_ranks(2, body):
        # 100 rows, half (1,0,0,0), half (0,1,0,0): variance 25/99 in two dimensions, one direction
        assert values["collapse/mean_std_per_dim"] == pytest.approx(2 * math.sqrt(25 / 99) / 4, rel=1e-12)
        assert values["collapse/effective_rank"] == pytest.approx(1.0, abs=1e-9)
        assert values["collapse/is_constant"] == 0
        # 2 * C(50, 2) pairs of cosine 1 among C(100, 2), the rest of cosine 0
        assert values["collapse/mean_similarity"] == pytest.approx(2 * 1225 / 4950, rel=1e-12)


def test_rank_of_k_equal_directions_is_k():
    rows = torch.eye(12, dtype=torch.float64)[:5].repeat(40, 1)
    signs = torch.ones(200, 1, dtype=torch.float64)
    signs[100:] = -1
    metric = Collapse(12)
    metric.update(rows * signs)
    assert numbers(metric)["collapse/effective_rank"] == pytest.approx(5.0, rel=1e-9)


def test_constant_features_have_rank_one_and_no_spread():
    metric = Collapse(8)
    for _ in range(3):
        metric.update(torch.full((10, 8), 7.3))
    values = numbers(metric)
    assert values["collapse/effective_rank"] == 1.0
    assert values["collapse/mean_std_per_dim"] == 0.0
    assert values["collapse/is_constant"] == 1.0
    assert values["collapse/mean_similarity"] == pytest.approx(1.0, rel=1e-6)


def test_isotropic_spread_is_one_over_root_dim():
    rows = torch.randn(20000, 32, generator=torch.Generator().manual_seed(0))
    metric = Collapse(32)
    metric.update(rows)
    values = numbers(metric)
    assert values["collapse/mean_std_per_dim"] == pytest.approx(1 / math.sqrt(32), rel=1e-2)
    assert values["collapse/mean_similarity"] == pytest.approx(0.0, abs=1e-3)


def test_zero_rows_do_not_bias_the_similarity():
    rows = torch.cat([torch.zeros(3, 4), torch.eye(4)])
    metric = Collapse(4)
    metric.update(rows)
    # no two different rows point the same way, and rows of zeros have no direction
    assert numbers(metric)["collapse/mean_similarity"] == pytest.approx(0.0, abs=1e-12)


def test_valid_mask_leaves_padding_out():
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(6, 5, 4, generator=generator)
    valid = torch.rand(6, 5, generator=generator) > 0.4
    features[~valid] = float("nan")
    masked, packed = Collapse(4), Collapse(4)
    masked.update(features, valid)
    packed.update(features[valid])
    expected = numbers(packed)  # rows have no images to pool over
    got = {tag: value for tag, value in numbers(masked).items() if tag in expected}
    assert got == pytest.approx(expected, rel=1e-6)
    assert numbers(masked)["collapse/nonfinite"] == 0


def test_nan_is_a_finding_and_not_an_exception():
    rows = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    rows[3, 1] = float("nan")
    metric = Collapse(4)
    metric.update(rows)
    values = numbers(metric)
    assert values["collapse/nonfinite"] == 1
    assert math.isnan(values["collapse/effective_rank"])


@pytest.mark.parametrize("rows", [torch.zeros(0, 4), torch.randn(3, 4)])
def test_nothing_valid_gives_nothing(rows):
    metric = Collapse(4)
    metric.update(rows, torch.zeros(len(rows), dtype=torch.bool))
    assert metric.compute() == {}


def test_one_row_and_one_dimension_have_defined_values():
    metric = Collapse(1)
    metric.update(torch.tensor([[2.0]]))
    values = numbers(metric)
    assert values["collapse/effective_rank"] == 1.0
    assert values["collapse/mean_std_per_dim"] == 0.0
    assert values["collapse/mean_similarity"] == 0.0
    assert "collapse/max_similarity" not in values


@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 3), (4,), (1, 2, 3, 4)])
def test_wrong_shape_is_named(shape):
    with pytest.raises(ConfigError, match=r"expected features \[N, 4\]"):
        Collapse(4).update(torch.zeros(shape))


def test_wrong_mask_shape_is_named():
    with pytest.raises(ConfigError, match="valid mask of shape"):
        Collapse(4).update(torch.zeros(2, 5, 4), torch.ones(2, 4, dtype=torch.bool))


def test_names_prefix_the_tags():
    metric = Collapse(4, name="level0")
    metric.update(torch.randn(9, 4))
    assert "collapse/level0_effective_rank" in metric.compute()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_accumulated_in_full(dtype):
    rows = torch.randn(500, 8, generator=torch.Generator().manual_seed(5)).to(dtype)
    metric = Collapse(8)
    metric.update(rows)
    for tag, expected in oracle(rows.float().numpy()).items():
        assert numbers(metric)[tag] == pytest.approx(expected, rel=1e-5, abs=1e-6), tag


def test_ids_make_the_sample_independent_of_the_rows_bits():
    rows = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(100)
    one, other = Collapse(4, sample=10), Collapse(4, sample=10)
    one.update(rows, ids=ids)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    other.update(rows[order] * (1 + 1e-6), ids=ids[order])
    a, b = (m.compute()["collapse/max_similarity"].value for m in (one, other))
    assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.parametrize(
    ("offset", "dtype"), [(1e4, torch.float64), (500.0, torch.float64), (500.0, torch.float32)]
)
def test_a_large_mean_hides_no_variance(offset, dtype):
    generator = torch.Generator().manual_seed(5)
    spread = 1e-3 if dtype == torch.float64 else 0.05
    scales = torch.arange(1, 65, dtype=torch.float64) ** -0.5
    rows = (offset + spread * scales * torch.randn(2000, 64, generator=generator, dtype=torch.float64)).to(
        dtype
    )
    metric = Collapse(64)
    metric.update(rows)
    values = numbers(metric)
    centred = rows.double().numpy() - rows.double().numpy().mean(axis=0)
    spectrum = np.linalg.svd(centred, compute_uv=False) ** 2
    assert values["collapse/stable_rank"] == pytest.approx(spectrum.sum() / spectrum[0], rel=1e-6)
    ranks = np.log(np.arange(4, 33))
    slope = np.polyfit(ranks, np.log(spectrum[3:32]), 1)[0]
    assert values["collapse/alpha_req"] == pytest.approx(-slope, rel=1e-6)


def test_constant_rows_far_from_zero_have_no_spectrum():
    metric = Collapse(8)
    metric.update(torch.full((50, 8), 1e4 / 3, dtype=torch.float64))
    metric.update(torch.full((50, 8), 1e4 / 3, dtype=torch.float64))
    values = numbers(metric)
    assert values["collapse/stable_rank"] == 1.0
    assert "collapse/alpha_req" not in values


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_norm_of_half_precision_rows_is_not_rounded(dtype):
    rows = torch.randn(40, 96, generator=torch.Generator().manual_seed(6)).to(dtype)
    metric = Collapse(96, short="context")
    metric.update(rows)
    expected = np.linalg.norm(rows.double().numpy(), axis=1).mean()
    assert numbers(metric)["train/context_norm"] == pytest.approx(expected, rel=1e-6)


def test_rows_that_differ_in_length_alone_are_not_constant():
    metric = Collapse(1)
    metric.update(torch.tensor([[1.0], [2.0], [5.0]]))
    assert numbers(metric)["collapse/is_constant"] == 0.0
    assert numbers(metric)["collapse/effective_rank"] == 1.0
    images = Collapse(2)
    images.update(torch.arange(1.0, 5.0)[:, None, None].expand(4, 3, 2))
    assert numbers(images)["collapse/pooled_is_constant"] == 0.0


def test_images_without_tokens_are_nothing():
    rows = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(7))
    alone, both = Collapse(4, short="context"), Collapse(4, short="context")
    for metric in (alone, both):
        metric.update(rows)
    both.update(torch.zeros(6, 0, 4))
    assert numbers(both) == numbers(alone)
    assert numbers(both)["collapse/pooled_num_samples"] == 5
