"""Modalities: exact against brute force over all pairs, at chance when nothing is learned, errors by name."""

import itertools

import numpy as np
import pytest
import torch

from hjepa_dist_metrics import (
    ConfigError,
    DesyncError,
    DistributedMetric,
    MetricCollection,
    ModalityAlignment,
    ModalityEmbeddings,
)
from hjepa_dist_metrics.metrics.multimodal.retrieval import diagonal_contrast, heatmap, recall_at
from hjepa_dist_metrics.values import Image
from tests.helpers.ranks import run_ranks, try_ranks

pytestmark = pytest.mark.accuracy

NAMES = ["text", "image", "audio"]
COUNT, DIM = 90, 12


def embeddings(names=NAMES, count=COUNT, dim=DIM, noise=0.7, seed=0):
    """What encoders give that agree up to noise, each modality about a mean of its own."""
    rng = np.random.default_rng(seed)
    content = rng.normal(size=(count, dim))
    return {
        name: content + noise * rng.normal(size=(count, dim)) + 0.5 * rng.normal(size=dim) for name in names
    }


def tensors(arrays, dtype=torch.float64):
    return {name: torch.from_numpy(array).to(dtype) for name, array in arrays.items()}


def numbers(values):
    return {tag: value.value for tag, value in values.items() if hasattr(value, "value")}


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def pair_oracle(a, b):
    """Brute force over all n * n pairs in float64."""
    a, b = unit(a), unit(b)
    similarity = a @ b.T
    order = np.argsort(-similarity, axis=1)
    back = np.argsort(-similarity.T, axis=1)
    own = np.arange(len(a))[:, None]
    rest = similarity[~np.eye(len(a), dtype=bool)]
    return {
        "diagonal_similarity": np.diag(similarity).mean(),
        "mean_similarity": similarity.mean(),
        "modality_gap": np.linalg.norm(a.mean(0) - b.mean(0)),
        "diagonal_contrast": (np.diag(similarity).mean() - rest.mean()) / rest.std(),
        **{f"recall_at_{k}_{{a}}_to_{{b}}": (order[:, :k] == own).any(1).mean() for k in (1, 5)},
        **{f"recall_at_{k}_{{b}}_to_{{a}}": (back[:, :k] == own).any(1).mean() for k in (1, 5)},
    }


@pytest.mark.parametrize("dim", [None, DIM])
def test_alignment_equals_brute_force_over_all_pairs(dim):
    arrays = embeddings()
    metric = ModalityAlignment(NAMES, dim)
    for start in range(0, COUNT, 17):
        metric.update({name: rows[start : start + 17] for name, rows in tensors(arrays).items()})
    values = numbers(metric.compute())
    for a, b in (("text", "image"), ("text", "audio"), ("image", "audio")):
        for name, expected in pair_oracle(arrays[a], arrays[b]).items():
            tag = f"alignment/{a}_vs_{b}/" + name.format(a=a, b=b)
            # what comes from the sample is kept in float32
            tolerance = 1e-6 if "contrast" in name else 1e-12
            assert values[tag] == pytest.approx(expected, rel=tolerance, abs=1e-12), tag
    assert values["alignment/num_pairs"] == values["alignment/sample_pairs"] == COUNT
    assert values["alignment/recall_at_5_chance"] == pytest.approx(5 / COUNT)


def test_embeddings_equal_numpy_for_widths_of_their_own():
    rng = np.random.default_rng(3)
    arrays = {"text": rng.normal(2.0, 3.0, size=(50, 4)), "image": rng.normal(size=(50, 9))}
    for dims in (None, {"text": 4, "image": 9}):
        metric = ModalityEmbeddings(list(arrays), dims)
        for start in (0, 20):
            metric.update({name: rows[start : start + 20 + start] for name, rows in tensors(arrays).items()})
        values = numbers(metric.compute())
        assert values.pop("embeddings/nonfinite") == 0
        assert values == pytest.approx(
            {
                f"embeddings/{name}/{key}": value
                for name, rows in arrays.items()
                for key, value in (
                    ("mean", rows.mean()),
                    ("std", rows.std(axis=0, ddof=1).mean()),
                    ("norm", np.linalg.norm(rows, axis=1).mean()),
                )
            },
            rel=1e-12,
        )


def test_an_encoder_that_is_blind_to_its_input_has_a_std_of_zero():
    row = torch.randn(8, generator=torch.Generator().manual_seed(0))
    metric = ModalityEmbeddings(["x"])
    metric.update({"x": row.expand(30, 8)})
    values = numbers(metric.compute())
    assert values["embeddings/x/std"] == 0.0
    assert values["embeddings/x/norm"] == pytest.approx(float(row.norm()), rel=1e-6)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("dim", [None, DIM])
def test_same_at_every_world_size_and_where_a_rank_has_nothing(world_size, dim):
    rows = tensors(embeddings(), torch.float32)
    cuts = [0, *sorted(np.random.default_rng(world_size).integers(0, COUNT, max(world_size - 2, 0))), COUNT]

    def body(context):
        metrics = {"a": ModalityAlignment(NAMES, dim, sample=32), "e": ModalityEmbeddings(NAMES, dim)}
        shares = list(itertools.pairwise(cuts))  # of several ranks the last has no sample
        if context.rank < len(shares):
            ids = torch.arange(COUNT)[slice(*shares[context.rank])]
            piece = {name: tensor[ids] for name, tensor in rows.items()}
            metrics["a"].update(piece, ids=ids)
            metrics["e"].update(piece)
        return MetricCollection(metrics, context).compute()

    whole = {"a": ModalityAlignment(NAMES, dim, sample=32), "e": ModalityEmbeddings(NAMES, dim)}
    whole["a"].update(rows, ids=torch.arange(COUNT))
    whole["e"].update(rows)
    expected = MetricCollection(whole).compute()
    for values in run_ranks(world_size, body):
        assert numbers(values) == pytest.approx(numbers(expected), rel=1e-5, abs=1e-7)
        pictures = [tag for tag, value in values.items() if isinstance(value, Image)]
        assert pictures == [f"alignment/{p}/similarity_matrix" for p in _pairs()]


def _pairs():
    return ["text_vs_image", "text_vs_audio", "image_vs_audio"]


@pytest.mark.parametrize("count", [2, 4])
def test_any_set_of_modalities_of_a_users_own(count):
    names = ["left eye", "depth", "lidar", "odour"][:count]
    arrays = embeddings(names)
    alignment, spread = ModalityAlignment(names), ModalityEmbeddings(names)
    alignment.update(tensors(arrays))
    spread.update(tensors(arrays))
    values = numbers(alignment.compute()) | numbers(spread.compute())
    first = pair_oracle(arrays["left eye"], arrays["depth"])
    assert values["alignment/left eye_vs_depth/mean_similarity"] == pytest.approx(first["mean_similarity"])
    assert sum(tag.endswith("/diagonal_similarity") for tag in values) == count * (count - 1) // 2
    assert {f"embeddings/{name}/std" for name in names} <= set(values)


def test_collapsed_encoders_are_at_chance():
    """Everything is alike: no row finds its own more often than any other would."""
    metric = ModalityAlignment(["a", "b"])
    one = torch.ones(40, 8) + 1e-8 * torch.randn(40, 8)
    metric.update({"a": one, "b": 3 * one}, ids=torch.arange(40))
    values = numbers(metric.compute())
    assert values["alignment/a_vs_b/recall_at_1_a_to_b"] == pytest.approx(1 / 40)
    assert values["alignment/a_vs_b/recall_at_5_b_to_a"] == values["alignment/recall_at_5_chance"]
    assert values["alignment/a_vs_b/diagonal_contrast"] == 0.0
    assert values["alignment/a_vs_b/diagonal_similarity"] == pytest.approx(1.0)
    assert values["alignment/a_vs_b/mean_similarity"] == pytest.approx(1.0)
    assert values["alignment/a_vs_b/modality_gap"] == pytest.approx(0.0, abs=1e-6)


def test_unrelated_encoders_are_at_chance():
    rng = np.random.default_rng(0)
    arrays = {"a": rng.normal(size=(400, 16)), "b": rng.normal(size=(400, 16))}
    metric = ModalityAlignment(["a", "b"], sample=400)
    metric.update(tensors(arrays))
    values = numbers(metric.compute())
    assert values["alignment/a_vs_b/recall_at_5_a_to_b"] == pytest.approx(
        5 / 400, abs=4 * (5 / 400 / 400) ** 0.5
    )
    assert abs(values["alignment/a_vs_b/diagonal_contrast"]) < 4 / 400**0.5


def test_padding_does_not_count():
    arrays = embeddings(count=30)
    padded = {
        name: torch.cat([rows, rows[:5].fill_(7.0)]) for name, rows in tensors(embeddings(count=30)).items()
    }
    for name, rows in tensors(arrays).items():
        padded[name][:30] = rows
    valid = torch.arange(35) < 30
    metrics = [(ModalityAlignment(NAMES), tensors(arrays), None), (ModalityAlignment(NAMES), padded, valid)]
    metrics += [
        (ModalityEmbeddings(NAMES), tensors(arrays), None),
        (ModalityEmbeddings(NAMES), padded, valid),
    ]
    seen = []
    for metric, rows, mask in metrics:
        metric.update(rows, mask)
        seen.append(numbers(metric.compute()))
    assert seen[0] == pytest.approx(seen[1], rel=1e-12)
    assert seen[2] == pytest.approx(seen[3], rel=1e-12)


def test_nan_is_a_finding():
    rows = tensors(embeddings())
    rows["audio"][3, 2] = float("nan")
    alignment, spread = ModalityAlignment(NAMES), ModalityEmbeddings(NAMES)
    alignment.update(rows)
    spread.update(rows)
    values = numbers(alignment.compute()) | numbers(spread.compute())
    assert values["embeddings/nonfinite"] == 1
    assert values["alignment/nonfinite"] == 2  # the sample's cosines with text and with image
    assert np.isnan(values["alignment/text_vs_audio/diagonal_similarity"])
    assert np.isnan(values["alignment/text_vs_audio/recall_at_1_text_to_audio"])
    assert np.isfinite(values["alignment/text_vs_image/diagonal_similarity"])
    assert np.isfinite(values["embeddings/text/norm"])


def test_half_precision_does_not_overflow():
    metric = ModalityEmbeddings(["a"])
    metric.update({"a": torch.full((4, 16), 3e4, dtype=torch.float16)})
    assert numbers(metric.compute())["embeddings/a/norm"] == pytest.approx(1.2e5, rel=1e-3)


@pytest.mark.parametrize(
    ("names", "match"),
    [
        ("text", "got 'text'"),
        (["text"], "2 or more"),
        (["text", "text"], "each once"),
        (["text", "a/b"], "without '/'"),
        (["text", ""], "names of 2 or more"),
    ],
)
def test_wrong_names_are_named(names, match):
    with pytest.raises(ConfigError, match=match):
        ModalityAlignment(names)


@pytest.mark.parametrize("kind", [ModalityAlignment, ModalityEmbeddings])
@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ({"a": torch.ones(4, 3)}, r"modalities \['a', 'b'\], got \['a'\]"),
        ({"a": torch.ones(4, 3), "c": torch.ones(4, 3)}, r"got \['a', 'c'\]"),
        ({"a": torch.ones(4, 3), "b": torch.ones(5, 3)}, r"as many rows.*'a': \[4, 3\], 'b': \[5, 3\]"),
        ({"a": torch.ones(4, 3), "b": torch.ones(4)}, r"one embedding \[B, D\] a modality.*'b': \[4\]"),
        (torch.ones(4, 3), "got Tensor"),
    ],
)
def test_wrong_batches_are_named(kind, rows, match):
    metric = kind(["a", "b"])
    with pytest.raises(ConfigError, match=match):
        metric.update(rows)


def test_modalities_of_other_widths_cannot_be_compared():
    with pytest.raises(ConfigError, match=r"one width.*'b': \[4, 5\]"):
        ModalityAlignment(["a", "b"]).update({"a": torch.ones(4, 3), "b": torch.ones(4, 5)})
    metric = ModalityAlignment(["a", "b"])
    metric.update({"a": torch.ones(4, 3), "b": torch.ones(4, 3)})
    with pytest.raises(ConfigError, match="width 3"):
        metric.update({"a": torch.ones(4, 5), "b": torch.ones(4, 5)})
    with pytest.raises(ConfigError, match=r"valid mask of shape \[4\], got \[3\]"):
        metric.update({"a": torch.ones(4, 3), "b": torch.ones(4, 3)}, torch.ones(3, dtype=torch.bool))
    with pytest.raises(ConfigError, match="widths of"):
        ModalityEmbeddings(["a", "b"], {"a": 3})


def test_ranks_with_other_widths_get_one_error_everywhere():
    def body(context):
        metric: DistributedMetric = ModalityAlignment(["a", "b"])
        rows = torch.ones(4, 3 + context.rank)
        metric.update({"a": rows, "b": rows})
        return MetricCollection({"m": metric}, context).compute()

    errors = try_ranks(2, body)
    assert [type(error) for error in errors] == [DesyncError, DesyncError]
    assert str(errors[0]) == str(errors[1])
    assert (
        "merging failed on ranks 0, 1 (state 'm.sample': ConfigError: cannot merge Sample[256,8,seed=0]"
        in str(errors[0])
    )


def test_recall_counts_ties_as_draws():
    similarity = np.array([[0.5, 0.5, 0.1], [0.9, 0.2, 0.2], [0.0, 0.0, 1.0]])
    # own place: drawn among 2, drawn for second place among 2, first
    assert recall_at(similarity, 1) == pytest.approx((0.5 + 0.0 + 1.0) / 3)
    assert recall_at(similarity, 2) == pytest.approx((1.0 + 0.5 + 1.0) / 3)


def test_contrast_by_hand():
    similarity = np.array([[0.8, 0.1], [0.3, 0.6]])
    assert diagonal_contrast(similarity) == pytest.approx((0.7 - 0.2) / 0.1)
    assert diagonal_contrast(np.ones((1, 1))) == 0.0


def test_heatmap_shows_signs_and_missing_values():
    pixels = heatmap(np.array([[1.0, -1.0], [0.0, np.nan]])).pixels
    assert pixels.shape == (320, 320, 3)
    red, blue, white, grey = pixels[0, 0], pixels[0, -1], pixels[-1, 0], pixels[-1, -1]
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert white.tolist() == [247] * 3
    assert grey.tolist() == [128] * 3
