"""The run's own figures show the counts, samples and matrices that they are given."""

import numpy as np
import pytest

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.figures.run import (
    coverage_map,
    mask_geometry,
    patch_grid,
    prediction_map,
    similarity_heatmap,
)
from hjepa_dist_metrics.figures.training.spectrum import (
    visualize_gram_matrices,
    visualize_hierarchy_resolution,
    visualize_spectrum,
)

GRID = (2, 3)
RNG = np.random.default_rng(0)


def shown(ax):
    return ax.images[-1].get_array()


def test_heat_maps_show_masked_patches_only():
    images, masks = RNG.random((2, 3, 4, 6)), np.array([[1, 0, 0, 0, 0, 1], [0] * 6], dtype=bool)
    cosines = np.linspace(-1, 1, 12).reshape(2, 6)
    figure = similarity_heatmap(images, cosines, masks, GRID)
    first, second = figure.axes[2:4]
    assert shown(first).compressed().tolist() == [cosines[0, 0], cosines[0, 5]]
    assert first.images[-1].get_clim() == (-1, 1)
    assert shown(second).mask.all()
    assert second.get_title() == "no mask"
    np.testing.assert_allclose(np.asarray(shown(figure.axes[0])), images[0].transpose(1, 2, 0))


def test_geometry_shows_blocks_samples_and_coverage():
    sizes = np.zeros((3, 4))
    sizes[1, 2], sizes[2, 2] = 5, 3
    masks = np.array([[1, 1, 0, 0, 0, 0]], dtype=bool)
    figure = mask_geometry(np.arange(6.0), 10, sizes, GRID, np.zeros((1, 1, 4, 6)), masks)
    area, shape, image, scene, coverage = sorted(
        (ax for ax in figure.axes if ax.get_title()),
        key=lambda ax: ("area", "shape", "image", "33", "how").index(ax.get_title().split()[0]),
    )
    assert {p.get_x() + p.get_width() / 2: p.get_height() for p in area.patches} == {2.0: 5, 4.0: 3}
    assert sum(p.get_height() for p in shape.patches) == 8
    assert (image.get_title(), scene.get_title()) == ("image", "33 %")
    np.testing.assert_allclose(shown(coverage), 10 * np.arange(6).reshape(GRID))
    without = mask_geometry(np.arange(6.0), 10, 0 * sizes, GRID, np.zeros((1, 1, 4, 6)), masks)
    assert "area of the blocks" not in [ax.get_title() for ax in without.axes]


def test_coverage_uses_its_own_range():
    figure = coverage_map(np.array([2.0, 4, 4, 4, 4, 4]), 8, GRID)
    assert figure.axes[0].images[0].get_clim() == (25, 50)
    assert figure.axes[0].get_title() == "25 to 50 % of 8 images"


def test_levels_share_a_projection_where_they_can():
    rows = [RNG.standard_normal((20, 8)) for _ in range(4)]
    figure = prediction_map(rows[:2], rows[2:])
    (ax,) = figure.axes
    assert [c.get_label() for c in ax.collections] == [
        "level 0: prediction",
        "level 0: target",
        "level 1: prediction",
        "level 1: target",
    ]
    everything = np.concatenate([rows[0], rows[2], rows[1], rows[3]])
    centred = everything - everything.mean(axis=0)
    largest = np.linalg.svd(centred, compute_uv=False)[0]
    drawn = np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections])
    assert np.linalg.norm(drawn[:, 0]) == pytest.approx(largest)
    assert len(prediction_map([rows[0], rows[1][:, :5]], [rows[2], rows[3][:, :5]]).axes) == 2


def test_patches_stand_in_the_middle_of_their_surroundings():
    patches = RNG.standard_normal((2, 1, 6, 6))
    figure = patch_grid(patches, np.array([-0.5, 0.25]), [[7, 3], [9, 0]], "Hardest patches")
    first = figure.axes[0]
    assert first.get_title() == "cosine -0.50\n#7, patch 3"
    (frame,) = first.patches
    assert (frame.get_x(), frame.get_y(), frame.get_width(), frame.get_height()) == (1.5, 1.5, 2, 2)
    stretched = (patches - patches.min()) / (patches.max() - patches.min())
    np.testing.assert_allclose(np.asarray(shown(figure.axes[1]))[..., 0], stretched[1, 0])


def test_spectra_are_relative_and_sorted():
    figure = visualize_spectrum({"level 0": [1.0, 4.0, 2.0], "level 1": [3.0, 0.0]})
    first, second = figure.axes[0].lines
    np.testing.assert_allclose(first.get_ydata(), [1, 0.5, 0.25])
    np.testing.assert_allclose(second.get_ydata(), [1, 1e-8])
    assert figure.axes[0].get_yscale() == "log"
    with pytest.raises(ConfigError, match="at least one spectrum"):
        visualize_spectrum({})


def test_gram_matrices_are_drawn_from_minus_one_to_one():
    matrix = np.array([[1.0, -0.5], [-0.5, 1.0]])
    figure = visualize_gram_matrices({"targets, level 0": matrix})
    np.testing.assert_array_equal(shown(figure.axes[0]), matrix)
    assert figure.axes[0].images[0].get_clim() == (-1, 1)
    assert figure.axes[1].get_ylabel() == "correlation"
    with pytest.raises(ConfigError, match=r"'a' as \[D, D\], got shape \[2, 3\]"):
        visualize_gram_matrices({"a": np.zeros((2, 3))})


def test_bars_carry_their_numbers():
    figure = visualize_hierarchy_resolution([196, 49], [80, 20], [75, 25], grids=[(14, 14), (7, 7)])
    left, right = figure.axes
    assert [p.get_height() for p in left.patches] == [196, 49]
    assert [t.get_text() for t in left.texts] == ["196", "49"]
    assert [p.get_height() for p in right.patches] == [80, 20, 75, 25]
    assert [t.get_text() for t in left.get_xticklabels()] == ["level 0\n14x14", "level 1\n7x7"]
    with pytest.raises(ConfigError, match="2 tokens, 1 compute"):
        visualize_hierarchy_resolution([1, 2], [1], [1, 2])
