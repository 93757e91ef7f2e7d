"""Prediction and feature pictures show the planted errors, clusters and neighbours."""

import numpy as np
import pytest
import torch

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.figures import (
    visualize_embedding_distribution,
    visualize_feature_space,
    visualize_hierarchical_predictions,
    visualize_nearest_neighbors,
    visualize_predictions,
    visualize_reconstruction,
)
from hjepa_dist_metrics.figures.predictions.projection import project
from tests.helpers.ranks import run_ranks

GRID = (2, 3)
RNG = np.random.default_rng(0)


def array(ax) -> np.ma.MaskedArray:
    return ax.images[-1].get_array()


def planted() -> tuple[torch.Tensor, torch.Tensor]:
    """Two images of 6 tokens: exact predictions, except token 4 of image 1, which is opposite."""
    targets = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    predictions = targets.clone()
    predictions[1, 4] *= -1
    return predictions, targets


def test_the_planted_error_is_where_it_was_planted():
    predictions, targets = planted()
    figure = visualize_predictions(predictions, targets, torch.rand(2, 3, 8, 12), index=1, grid=GRID)
    image, cosine, error, counts = figure.axes[:4]
    assert image.get_title() == "image 1 of 2"
    wanted = np.ones(GRID)
    wanted[1, 1] = -1
    np.testing.assert_allclose(array(cosine), wanted, atol=1e-6)
    assert array(cosine).mask.sum() == 0
    assert cosine.images[-1].get_clim() == (-1, 1)
    assert np.unravel_index(array(error).argmax(), GRID) == (1, 1)
    assert array(error)[1, 1] == pytest.approx(float(4 * (targets[1, 4] ** 2).mean()))
    assert error.images[-1].get_extent() == [-0.5, 11.5, 7.5, -0.5]
    heights = [p.get_height() for p in counts.patches]
    assert (heights[0], heights[-1], sum(heights)) == (1, 11, 12)


def test_visible_patches_are_left_out():
    predictions, targets = planted()
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[1, 3:5] = True
    figure = visualize_predictions(predictions, targets, mask=mask, index=1, grid=GRID)
    assert figure.axes[0].images[-1].get_array().mask.tolist() == [[True] * 3, [False, False, True]]
    assert "mean 0.00, 2 tokens" in [ax.get_title() for ax in figure.axes]


def test_levels_have_their_grids_and_means():
    fine, target = torch.randn(2, 16, 4), torch.randn(2, 16, 4)
    coarse = target[:, :4]
    figure = visualize_hierarchical_predictions([fine, coarse], [target, -coarse], torch.rand(1, 8, 8))
    assert [ax.get_title() for ax in figure.axes[:2]] == ["level 0: 4x4 tokens", "level 1: 2x2 tokens"]
    unit = [x / x.norm(dim=-1, keepdim=True) for x in (fine, target)]
    np.testing.assert_allclose(array(figure.axes[0]), (unit[0] * unit[1]).sum(-1)[0].reshape(4, 4), atol=1e-6)
    np.testing.assert_allclose(array(figure.axes[1]), -np.ones((2, 2)), atol=1e-6)
    assert figure.axes[3].get_title() == "mean -1.00, 8 tokens"


def clusters(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(count) % 2
    rows = RNG.standard_normal((count, 10))
    rows[:, 3] += 20 * labels
    return rows, labels


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_two_clusters_lie_apart(method: str):
    rows, labels = clusters()
    figure = visualize_feature_space(rows, labels, method, names=["left", "right"])
    first, second = figure.axes[0].collections
    assert [first.get_label(), second.get_label()] == ["left", "right"]
    a, b = np.asarray(first.get_offsets()), np.asarray(second.get_offsets())
    assert len(a) == len(b) == 30
    within = max(np.linalg.norm(x - x.mean(axis=0), axis=1).max() for x in (a, b))
    between = np.linalg.norm(a[:, None] - b[None], axis=-1).min()
    assert between > within / 2
    assert figure.axes[0].get_xlabel().startswith("component 1" if method == "pca" else "t-SNE 1")


def test_pca_is_the_eigenvectors_of_the_covariance():
    rows, _ = clusters()
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    found = project(rows, "pca")
    wanted = (rows - rows.mean(axis=0)) @ vectors[:, ::-1][:, :2]
    np.testing.assert_allclose(np.abs(found.points), np.abs(wanted), atol=1e-9)
    assert f"({100 * values[-1] / values.sum():.0f} % of variance)" in found.x


def test_umap_falls_back_with_a_message(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "umap", None)
    rows, labels = clusters(20)
    figure = visualize_feature_space(rows, labels, "umap")
    assert "umap-learn is not installed" in caplog.text
    assert "t-SNE (UMAP is not installed)" in figure.get_suptitle()


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_feature_space_is_the_same_for_every_split(world_size: int):
    rows, labels = clusters()

    def body(context):
        mine = slice(context.rank, None, context.world_size)
        figure = visualize_feature_space(rows[mine], labels[mine], sample=25, context=context)
        return np.concatenate([np.asarray(c.get_offsets()) for c in figure.axes[0].collections])

    whole = visualize_feature_space(rows, labels, sample=25)
    wanted = np.concatenate([np.asarray(c.get_offsets()) for c in whole.axes[0].collections])
    for points in run_ranks(world_size, body):
        np.testing.assert_array_equal(points, wanted)


def brute_force(features: np.ndarray, query: int, k: int) -> list[int]:
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosine = unit @ unit[query]
    cosine[query] = -2
    return np.argsort(-cosine)[:k].tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_neighbours_are_exact_over_all_ranks(world_size: int):
    """The picture of image i is the constant i / 64, so that every panel tells which image it shows."""
    features = np.random.default_rng(1).standard_normal((60, 6))
    images = np.broadcast_to(np.arange(60).reshape(-1, 1, 1, 1) / 64, (60, 3, 4, 4))

    def body(context):
        mine = np.array_split(np.arange(60), context.world_size)[context.rank]
        figure = visualize_nearest_neighbors(
            features[mine], torch.tensor(images[mine]), [0, 7], 4, context=context
        )
        numbers = [round(float(np.asarray(ax.images[0].get_array())[0, 0, 0]) * 64) for ax in figure.axes]
        return numbers, [ax.get_title() for ax in figure.axes]

    for numbers, titles in run_ranks(world_size, body):
        assert numbers == [0, *brute_force(features, 0, 4), 7, *brute_force(features, 7, 4)]
        assert titles[5] == "query 7"
        nearest = brute_force(features, 7, 1)[0]
        a, b = features[7], features[nearest]
        assert titles[6] == f"cosine {a @ b / np.linalg.norm(a) / np.linalg.norm(b):.3f}"


def test_fewer_images_than_neighbours():
    figure = visualize_nearest_neighbors(np.eye(3), np.zeros((3, 1, 2, 2)), [0], k=5)
    assert sum(bool(ax.images) for ax in figure.axes) == 3


def test_reconstructions_show_error_and_psnr():
    """A constant error of 0.1 is a PSNR of 20 dB; no error counts as 100 dB, as in `Reconstruction`."""
    images = torch.full((2, 3, 4, 4), 0.5)
    made = images.clone()
    made[0] += 0.1
    figure = visualize_reconstruction(images, made)
    assert figure.axes[1].get_title() == "reconstruction, 20.0 dB"
    assert figure.axes[4].get_title() == "reconstruction, 100.0 dB"
    np.testing.assert_allclose(array(figure.axes[2]), 0.1, atol=1e-6)
    assert figure.axes[2].images[-1].get_clim() == pytest.approx((0, 0.1), abs=1e-6)
    assert (array(figure.axes[5]) == 0).all()


def test_embedding_statistics_are_the_metrics_own():
    """Rank 3 of 16 dimensions with an equal spectrum: an effective rank of 3 on the unit rows."""
    rows = np.zeros((300, 16))
    rows[np.arange(300), np.arange(300) % 3] = 1.0
    rows[150:] *= -1
    figure = visualize_embedding_distribution(rows)
    norms, spread, spectrum, cosine = figure.axes
    assert "effective rank 3.0 of 16" in spectrum.get_title()
    assert (np.asarray(spectrum.lines[0].get_ydata()) > 1e-3).sum() == 3
    assert sum(p.get_height() for p in norms.patches) == 300
    np.testing.assert_allclose(np.asarray(spread.lines[0].get_ydata())[3:], 0)
    assert spread.lines[1].get_ydata()[0] == 0.25
    assert cosine.get_xlim() == (-1, 1)


def test_constant_embeddings_are_drawn():
    figure = visualize_embedding_distribution(np.ones((10, 4)))
    assert "effective rank 1.0 of 4" in figure.axes[2].get_title()
    assert "mean 1.00" in figure.axes[3].get_title()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: visualize_predictions(np.ones((4, 2)), np.ones((4, 3))), "differ in shape"),
        (lambda: visualize_predictions(np.ones((5, 2)), np.ones((5, 2))), "cannot tell the grid"),
        (lambda: visualize_predictions(np.ones((4, 2)), np.ones((4, 2)), index=2), "1 images, got index 2"),
        (
            lambda: visualize_predictions(np.ones((4, 2)), np.ones((4, 2)), mask=np.ones((1, 5))),
            r"expected a mask \[4\] or \[1, 4\]",
        ),
        (lambda: visualize_hierarchical_predictions([1], []), "1 levels and targets of 0"),
        (lambda: visualize_feature_space(np.ones((4, 2)), [1, 2]), "a label for each of 4 rows, got 2"),
        (lambda: visualize_feature_space(np.full((4, 2), np.nan)), "4, 0 finite"),
        (lambda: visualize_feature_space(np.eye(4), method="som"), "method is 'som'"),
        (
            lambda: visualize_nearest_neighbors(np.eye(3), np.zeros((2, 1, 2, 2)), [0]),
            "3 rows of features and 2",
        ),
        (lambda: visualize_nearest_neighbors(np.eye(3), np.zeros((3, 1, 2, 2)), [5]), r"got queries \[5\]"),
        (lambda: visualize_reconstruction(np.ones((1, 1, 2, 2)), np.ones((1, 1, 2, 3))), "of one shape"),
        (lambda: visualize_embedding_distribution(np.ones(4)), r"expected features \[n, D\]"),
    ],
)
def test_bad_features_are_told(call, message: str):
    with pytest.raises(ConfigError, match=message):
        call()
