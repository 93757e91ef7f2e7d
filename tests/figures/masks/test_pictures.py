"""Mask pictures show the known mask, patch for patch and pixel for pixel."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from PIL import Image

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.figures import (
    animate_masking_process,
    compare_masking_strategies,
    plot_masking_statistics,
    visualize_context_target_regions,
    visualize_masked_image,
    visualize_masking_strategy,
    visualize_multi_block_masking,
)
from hjepa_dist_metrics.figures.style import CONTEXT, MASKED
from hjepa_dist_metrics.reference.hjepa.masking import MultiBlockMaskGenerator

GRID = (3, 4)
MASK = np.zeros(GRID, dtype=bool)
MASK[1:3, 2:4] = True  # a block of 2 x 2 at row 1, column 2
PIXELS = np.kron(MASK, np.ones((4, 4), dtype=bool))
IMAGE = torch.rand(3, 12, 16, generator=torch.Generator().manual_seed(0))
SHOWN = IMAGE.permute(1, 2, 0).double().numpy()


def shown(ax) -> np.ndarray:
    return np.asarray(ax.images[-1].get_array())


def bars(ax) -> dict[float, float]:
    return {round(p.get_x() + p.get_width() / 2, 6): p.get_height() for p in ax.patches if p.get_height()}


@pytest.mark.parametrize(
    "mask", [MASK, MASK.ravel(), torch.from_numpy(MASK).flatten()[None], MASK.astype(int)]
)
def test_a_masked_image_is_grey_exactly_where_masked(mask):
    figure = visualize_masked_image(IMAGE, mask)
    image, flags, masked = figure.axes
    np.testing.assert_allclose(shown(image), SHOWN)
    np.testing.assert_array_equal(shown(flags), MASK)
    assert (shown(masked)[PIXELS] == 0.5).all()
    np.testing.assert_allclose(shown(masked)[~PIXELS], SHOWN[~PIXELS])
    assert flags.get_title() == "mask (33 % masked)"


def test_a_strategy_shows_share_of_rows_and_columns():
    figure = visualize_masking_strategy(MASK.ravel(), IMAGE)
    picture, lines = figure.axes
    assert picture.get_title() == "4 of 12 patches masked (33.3 %)"
    np.testing.assert_allclose(shown(picture)[~PIXELS], SHOWN[~PIXELS])
    np.testing.assert_allclose(shown(picture)[PIXELS], 0.45 * SHOWN[PIXELS] + 0.55 * np.array(to_rgb(MASKED)))
    rows, columns = lines.lines
    np.testing.assert_allclose(rows.get_ydata(), [0, 50, 50])
    np.testing.assert_allclose(columns.get_ydata(), np.array([0, 0, 200, 200]) / 3)
    assert lines.get_ylabel() == "masked (%)"
    assert [t.get_text() for t in lines.get_legend().get_texts()] == ["rows", "columns"]


def test_context_and_targets_are_apart():
    blocks = np.array([[1, 2, 2, 2], [0, 0, 0, 0]])
    figure = visualize_context_target_regions(IMAGE, MASK, blocks)
    both, context, targets = figure.axes
    np.testing.assert_allclose(shown(both)[~PIXELS], 0.45 * SHOWN[~PIXELS] + 0.55 * np.array(to_rgb(CONTEXT)))
    assert (shown(context)[PIXELS] == 1).all()
    assert (shown(targets)[~PIXELS] == 1).all()
    np.testing.assert_allclose(shown(targets)[PIXELS], SHOWN[PIXELS])
    (frame,) = [p for p in targets.patches if isinstance(p, Rectangle)]
    assert (frame.get_x(), frame.get_y(), frame.get_width(), frame.get_height()) == (7.5, 3.5, 8, 8)
    assert targets.get_title() == "targets: 4 patches in 1 blocks"


def test_strategies_side_by_side():
    half = np.tile(np.arange(12) % 2 == 0, (10, 1))
    figure = compare_masking_strategies({"block": np.tile(MASK.ravel(), (5, 1)), "half": half}, grid=GRID)
    panels = figure.axes[:8]
    assert [panels[0].get_ylabel(), panels[4].get_ylabel()] == ["block", "half"]
    np.testing.assert_array_equal(shown(panels[0]), MASK)
    np.testing.assert_allclose(shown(panels[2]), 100 * MASK)
    np.testing.assert_allclose(shown(panels[6]), 100 * half[0].reshape(GRID))
    assert panels[2].images[-1].get_clim() == panels[6].images[-1].get_clim() == (0, 100)
    assert bars(panels[3]) == {34.0: 5}
    assert bars(panels[7]) == {50.0: 10}


def test_statistics_count_coverage_ratios_and_blocks():
    masks = np.stack([MASK, MASK, np.zeros(GRID, bool), np.ones(GRID, bool)])
    blocks = np.array([[[1, 2, 2, 2]], [[1, 2, 2, 2]], [[0, 0, 0, 0]], [[0, 0, 3, 4]]])
    figure = plot_masking_statistics(masks, blocks)
    coverage, ratios, areas, shapes = figure.axes[:4]
    np.testing.assert_allclose(shown(coverage), 100 * (2 * MASK + 1) / 4)
    assert bars(ratios) == {34.0: 2, 2.0: 1, 98.0: 1}
    assert bars(areas) == {4.0: 2, 12.0: 1}
    assert sum(bars(shapes).values()) == 3
    assert areas.get_xlabel() == "area (patches)"
    assert len([ax for ax in plot_masking_statistics(masks).axes if ax.get_title()]) == 2


def test_generators_make_the_samples():
    generator = MultiBlockMaskGenerator((6, 6), seed=3)
    figure = visualize_multi_block_masking(4, generator)
    wanted = MultiBlockMaskGenerator((6, 6), seed=3)(4).reshape(4, 6, 6)
    for ax, mask in zip(figure.axes, wanted, strict=True):
        np.testing.assert_array_equal(shown(ax), mask)
    default = visualize_multi_block_masking(num_samples=9)
    assert len(default.axes) == 9
    assert shown(default.axes[0]).shape == (14, 14)
    assert 0 < shown(default.axes[0]).mean() < 1


def test_the_animation_has_a_frame_for_each_mask(tmp_path: Path):
    growing = np.stack([np.arange(12) < k for k in (2, 6, 12)])
    figure = animate_masking_process(IMAGE, growing, grid=GRID, save_path=tmp_path / "a" / "growing.gif")
    assert shown(figure.axes[1]).all()
    with Image.open(tmp_path / "a" / "growing.gif") as gif:
        assert gif.n_frames == 3
        assert gif.info["duration"] == 500
        frames = []
        for k in range(3):
            gif.seek(k)
            frames.append(np.asarray(gif.convert("RGB")).astype(int))
    orange = np.array(to_rgb(MASKED)) * 255
    share = [(np.abs(frame - orange).max(axis=-1) < 24).mean() for frame in frames]
    assert share[0] < share[1] < share[2]
    assert share[2] == pytest.approx(6 * share[0], rel=0.15)


def test_animations_say_what_they_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"writing x\.mp4 needs ffmpeg"):
        animate_masking_process(IMAGE, MASK[None], save_path=tmp_path / "x.mp4")
    with pytest.raises(ConfigError, match=r"use \.gif or \.mp4"):
        animate_masking_process(IMAGE, MASK[None], save_path=tmp_path / "x.png")
    with pytest.raises(ConfigError, match="frames_per_second is 0"):
        animate_masking_process(IMAGE, MASK[None], save_path=tmp_path / "x.gif", frames_per_second=0)


def test_mp4_goes_through_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A stand-in ffmpeg keeps what it was given: raw RGB of even size, one frame after the other."""
    program = tmp_path / "ffmpeg"
    program.write_text('#!/bin/sh\nfor last; do :; done\necho "$@" > "$last.args"\n/bin/cat > "$last"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    animate_masking_process(
        IMAGE, np.stack([MASK, ~MASK]), save_path=tmp_path / "x.mp4", figsize=(3.01, 2.01)
    )
    arguments = (tmp_path / "x.mp4.args").read_text().split()
    width, height = map(int, arguments[arguments.index("-s") + 1].split("x"))
    assert width % 2 == height % 2 == 0
    assert (tmp_path / "x.mp4").stat().st_size == 2 * width * height * 3
    program.write_text("#!/bin/sh\n/bin/cat > /dev/null\necho no codec >&2\nexit 1\n")
    with pytest.raises(ConfigError, match="no codec"):
        animate_masking_process(IMAGE, MASK[None], save_path=tmp_path / "y.mp4")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: visualize_masked_image(IMAGE, np.ones(10, bool)),
            "cannot tell the grid of the mask's 10 patches",
        ),
        (
            lambda: visualize_masked_image(IMAGE, MASK, grid=(5, 2)),
            "12 patches, which do not fill a grid of 5x2",
        ),
        (
            lambda: visualize_masked_image(IMAGE[:, :11], MASK),
            "11x16 pixels does not divide into a grid of 3x4",
        ),
        (lambda: visualize_masked_image(torch.rand(4, 12, 16), MASK), r"got \[4, 12, 16\]"),
        (lambda: visualize_masking_strategy(MASK * 0.5), "must be boolean"),
        (lambda: visualize_context_target_regions(IMAGE, MASK, [[2, 2, 2, 2]]), "leaves the grid of 3x4"),
        (lambda: visualize_context_target_regions(IMAGE, MASK, [[2, 2]]), r"expected blocks \[..., 4\]"),
        (lambda: compare_masking_strategies({}), "at least one strategy"),
        (lambda: plot_masking_statistics(np.zeros((2, 2, 2, 2))), r"expected masks \[n, N\]"),
        (lambda: visualize_multi_block_masking(0), "num_samples is 0"),
    ],
)
def test_bad_masks_and_images_are_told(call, message: str):
    with pytest.raises(ConfigError, match=message):
        call()
