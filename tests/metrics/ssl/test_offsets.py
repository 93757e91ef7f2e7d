"""Features whose mean is 1e2 to 1e7 times their spread, against extended precision.

The oracle centres and normalises the very numbers that the metric gets in `numpy.longdouble`; what is left
has no offset, and float64 is exact for it.
"""

import math

import numpy as np
import pytest
import torch

from hjepa_dist_metrics import (
    Collapse,
    HierarchyFeatures,
    ModalityAlignment,
    ModalityEmbeddings,
    PredictionQuality,
)

pytestmark = pytest.mark.accuracy

TYPES = {"float32": torch.float32, "float64": torch.float64}
every_type = pytest.mark.parametrize("dtype", TYPES)


def features(offset, dtype, shape=(300, 12), seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    scales = np.linspace(0.5, 2.0, shape[-1])
    direction = rng.uniform(0.5, 1.5, shape[-1])
    x = spread * (rng.normal(size=shape) * scales + offset * direction)
    return torch.from_numpy(x).to(TYPES[dtype])


def exact(x):
    return np.asarray(x.double().numpy(), dtype=np.longdouble)


def centred(x):
    return (x - x.mean(axis=0)).astype(np.float64)


def unit(x):
    return x / np.sqrt((x * x).sum(axis=-1, keepdims=True))


def entropy_rank(weights):
    p = weights / weights.sum()
    p = p[p > 0]
    return math.exp(-(p * np.log(p)).sum())


def singular(x):
    return np.linalg.svd(x, compute_uv=False)


def pairs(matrix):
    return matrix[np.triu_indices(len(matrix), 1)]


def similarity_std(u):
    """Cosines minus their mean, from deviations d: cos - cos' needs no digit that the offset takes."""
    mean, d = u.mean(axis=0), u - u.mean(axis=0)
    deviation = d @ mean
    cosines = deviation[:, None] + deviation[None, :] + d @ d.T
    return float(pairs(cosines).std())


def collapse_oracle(x):
    """Return the table of rows [n, D] in longdouble."""
    u = unit(x)
    rows, directions = centred(x), centred(u)
    covariance = np.cov(rows.T)
    spectrum = np.linalg.eigvalsh(covariance)
    cosine = unit(directions) @ unit(directions).T
    squared = ((directions[:, None] - directions[None]) ** 2).sum(-1)
    return {
        "mean_std_per_dim": directions.std(axis=0, ddof=1).mean(),
        "min_std_per_dim": directions.std(axis=0, ddof=1).min(),
        "effective_rank": entropy_rank(singular(directions) ** 2),
        "mean_similarity": float(pairs(u @ u.T).mean()),
        "std_similarity": similarity_std(u),
        "rankme": entropy_rank(singular(x.astype(np.float64))),
        "rankme_centered": entropy_rank(singular(rows)),
        "participation_ratio": spectrum.sum() ** 2 / (spectrum**2).sum(),
        "stable_rank": spectrum.sum() / spectrum[-1],
        "mean_share": float((x.mean(0) ** 2).sum() / (x**2).sum(axis=1).mean()),
        "uniformity": math.log1p(np.expm1(-2 * pairs(squared)).mean()),
        "centered_similarity": pairs(cosine).mean(),
    }


def numbers(metric, prefix):
    values = metric.compute()
    return {t.removeprefix(prefix): float(v) for t, v in values.items() if hasattr(v, "value")}


def assert_close(got, expected, rel, loose=()):
    for name, value in expected.items():
        # what is read from the sample, which is kept in float32
        tolerance = loose.get(name, rel) if isinstance(loose, dict) else rel
        assert got[name] == pytest.approx(value, rel=tolerance, abs=1e-3 * tolerance), name


@every_type
@pytest.mark.parametrize("offset", [0.0, 1e2, 1e3, 1e4, 1e5, 1e6])
def test_the_collapse_table_at_any_offset(offset, dtype):
    x = features(offset, dtype)
    metric = Collapse(12)
    for part in x.split(47):
        metric.update(part)
    # Unit rows are rounded to 1e-16 of an offset that is `offset` times the spread, sampled ones to 6e-8.
    rel, sampled = 1e-8, max(1e-6, 3e-7 * offset)
    loose = {"uniformity": sampled, "centered_similarity": max(sampled, 1e-2)}
    assert_close(
        numbers(metric, "collapse/"), collapse_oracle(exact(x)), max(rel, 1e-14 * offset**1.5), loose
    )


@every_type
@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
def test_images_of_tokens_at_any_offset(offset, dtype):
    x = features(offset, dtype, shape=(60, 7, 8), seed=1)
    metric = Collapse(8)
    for part in x.split(13):
        metric.update(part)
    wide = exact(x)
    images = wide.mean(axis=1)
    between = np.cov(centred(images).T)
    inside = (wide - images[:, None]).astype(np.float64).reshape(-1, 8)
    within = inside.T @ inside / (60 * 6)
    values, vectors = np.linalg.eigh(within + 1e-4 * np.eye(8))
    white = vectors @ np.diag(values**-0.5) @ vectors.T
    p = np.linalg.eigvalsh(white @ between @ white)
    p = p / p.sum() + 1e-8
    expected = {
        "lidar": math.exp(-(p * np.log(p)).sum()),
        "between_within_ratio": np.trace(between) / np.trace(within),
        "pooled_effective_rank": entropy_rank(singular(centred(unit(images))) ** 2),
        "pooled_rankme": entropy_rank(singular(images.astype(np.float64))),
        "pooled_mean_std_per_dim": centred(unit(images)).std(axis=0, ddof=1).mean(),
    }
    assert_close(numbers(metric, "collapse/"), expected, 1e-7)


@every_type
@pytest.mark.parametrize(("mean", "spread", "dim"), [(1e4, 1e-3, 64), (1e2, 1e-3, 768)])
def test_the_rank_of_a_small_spread_about_a_large_mean(mean, spread, dim, dtype):
    x = torch.from_numpy(mean + spread * np.random.default_rng(2).normal(size=(2 * dim, dim))).to(
        TYPES[dtype]
    )
    metric = Collapse(dim, full=False)
    metric.update(x)
    expected = entropy_rank(singular(centred(unit(exact(x)))) ** 2)
    assert numbers(metric, "collapse/")["effective_rank"] == pytest.approx(expected, rel=1e-6)


@every_type
@pytest.mark.parametrize("offset", [1e2, 1e4, 1e7])
def test_levels_and_their_cka_at_any_offset(offset, dtype):
    fine, coarse = features(offset, dtype, (40, 6, 8), seed=3), features(offset, dtype, (40, 3, 5), seed=4)
    coarse[..., 0] += fine.mean(dim=(1, 2), keepdim=True)[..., 0] - offset
    metric = HierarchyFeatures([8, 5])
    for piece in (slice(0, 9), slice(9, 40)):
        metric.update([fine[piece], coarse[piece]])
    got = numbers(metric, "hierarchy/")
    x, y = (centred(exact(level).mean(axis=1)) for level in (fine, coarse))
    cka = np.linalg.norm(x.T @ y) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)
    elements = exact(fine).reshape(-1)
    expected = {
        "level1_cka": cka,
        "level0_feat_mean": float(elements.mean()),
        "level0_feat_std": float(np.sqrt(((elements - elements.mean()) ** 2).sum() / (len(elements) - 1))),
        "level0_feat_norm": float(np.sqrt((exact(fine) ** 2).sum(-1)).mean()),
        "level0_effective_rank": entropy_rank(singular(exact(fine).reshape(-1, 8).astype(np.float64))),
    }
    # of uncentred tokens: at 1e7 all but one eigenvalue are rounding
    assert_close(got, expected, 1e-7, {"level0_effective_rank": 1e-5})


@every_type
@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("error", [0.0, 1.0])
def test_alignment_and_cosine_at_any_offset(offset, error, dtype):
    targets = features(offset, dtype, (20, 4, 12), seed=5)
    noise = error * features(0.0, dtype, (20, 4, 12), seed=6)
    metric = PredictionQuality(1, [12])
    metric.update([targets + noise], [targets])
    got = numbers(metric, "")
    p, t = unit(exact(targets + noise)), unit(exact(targets))
    apart = ((p - t) ** 2).sum(-1)
    expected = {
        "collapse/alignment": float(apart.mean()),
        "prediction/level0_normalized_mse": float(apart.mean() / 12),
        "prediction/level0_cosine_sim_mean": float((p * t).sum(-1).mean()),
        "prediction/level0_l2_distance": float(
            np.sqrt(((exact(targets + noise) - exact(targets)) ** 2).sum(-1)).mean()
        ),
    }
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-9), name
    assert error or got["collapse/alignment"] == 0.0


@every_type
@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
def test_embeddings_of_modalities_at_any_offset(offset, dtype):
    text, image = features(offset, dtype, (50, 6), seed=7), features(offset, dtype, (50, 6), seed=8)
    spread, compared = ModalityEmbeddings(["text", "image"]), ModalityAlignment(["text", "image"])
    for piece in (slice(0, 20), slice(20, 50)):
        batch = {"text": text[piece], "image": image[piece]}
        spread.update(batch)
        compared.update(batch)
    x, y = exact(text), exact(image)
    got = numbers(spread, "embeddings/") | numbers(compared, "alignment/text_vs_image/")
    gap = unit(x).mean(0) - unit(y).mean(0)
    expected = {
        "text/mean": float(x.mean()),
        "text/std": centred(x).std(axis=0, ddof=1).mean(),
        "text/norm": float(np.sqrt((x**2).sum(1)).mean()),
        "diagonal_similarity": float((unit(x) * unit(y)).sum(1).mean()),
        "modality_gap": float(np.sqrt((gap**2).sum())),
    }
    assert_close(got, expected, 1e-6)


@every_type
@pytest.mark.parametrize("offset", [1e1, 1e2, 1e3, 1e4])
def test_retrieval_at_any_offset(offset, dtype):
    text = features(offset, dtype, (60, 8), seed=9)
    image = text + 0.3 * features(0.0, dtype, (60, 8), seed=10)
    metric = ModalityAlignment(["text", "image"])
    metric.update({"text": text, "image": image}, ids=torch.arange(60))
    got = numbers(metric, "alignment/text_vs_image/")
    x, y = unit(exact(text)), unit(exact(image))
    nearness = -((x[:, None] - y[None]) ** 2).sum(-1)  # 2 cosine - 2
    recall = (nearness > nearness.diagonal()[:, None]).sum(axis=1) < 1
    own = np.eye(60, dtype=bool)
    contrast = (nearness[own].mean() - nearness[~own].mean()) / nearness[~own].std()
    assert recall.mean() > 0.5
    assert got["recall_at_1_text_to_image"] == pytest.approx(recall.mean(), abs=1e-9)
    assert got["diagonal_contrast"] == pytest.approx(float(contrast), rel=1e-2)


def test_rows_that_differ_in_length_alone_have_one_direction():
    """What rounding leaves in unit rows is no rank, at any width."""
    for dim in (1, 2, 3, 17, 256):
        direction = np.random.default_rng(dim).normal(size=dim)
        x = torch.from_numpy(direction * 2.0 ** np.arange(-20, 20)[:, None])
        metric = Collapse(dim)
        metric.update(x)
        assert numbers(metric, "collapse/")["effective_rank"] == 1.0
