"""Pictures, grids and videos against pixels worked out by hand."""

import numpy as np
import pytest
import torch

from hjepa_dist_metrics import ConfigError
from hjepa_dist_metrics.logging.images import (
    check_frames,
    figure_pixels,
    image_layout,
    to_frames,
    to_grid,
    to_pixels,
)

RAMP = np.linspace(0, 1, 12).reshape(3, 4)


@pytest.mark.parametrize(
    ("image", "shape"),
    [
        (RAMP, (3, 4, 1)),
        (torch.rand(1, 5, 6), (5, 6, 1)),
        (torch.rand(3, 5, 6), (5, 6, 3)),
        (torch.rand(4, 5, 6), (5, 6, 3)),
        (np.random.rand(5, 6, 3), (5, 6, 3)),
        (torch.rand(3, 7, 3), (7, 3, 3)),
        (np.random.rand(3, 7, 3), (3, 7, 3)),
        (torch.rand(2, 2) > 0.5, (2, 2, 1)),
    ],
)
def test_shapes(image, shape):
    assert to_pixels(image).shape == shape


def test_values_within_zero_and_one_keep_their_brightness():
    assert to_pixels(np.array([[0.0, 0.5, 1.0]]))[..., 0].tolist() == [[0, 128, 255]]
    assert to_pixels(np.array([[0.2, 0.4]]))[..., 0].tolist() == [[51, 102]]
    assert to_pixels(torch.tensor([[True, False]]))[..., 0].tolist() == [[255, 0]]
    assert to_pixels(np.array([[0, 1]]))[..., 0].tolist() == [[0, 255]]
    assert to_pixels(np.array([[0, 200]], np.uint8))[..., 0].tolist() == [[0, 200]]
    assert to_pixels(np.array([[0, 200]], np.int64))[..., 0].tolist() == [[0, 200]]


def test_other_floats_are_stretched_and_nan_is_black():
    assert to_pixels(np.array([[-2.0, 0.0, 2.0]]))[..., 0].tolist() == [[0, 128, 255]]
    assert to_pixels(np.array([[np.nan, 3.0, 7.0, np.inf]]))[..., 0].tolist() == [[0, 0, 255, 0]]
    assert to_pixels(np.full((1, 2), 5.0)).tolist() == [[[0], [0]]]


def test_bfloat16_and_layouts_named_outright():
    assert to_pixels(torch.ones(2, 2, dtype=torch.bfloat16)).max() == 255
    assert to_pixels(np.zeros((3, 7, 3)), "CHW").shape == (7, 3, 3)
    assert to_pixels(np.zeros((3, 7, 3)), "HWC").shape == (3, 7, 3)


@pytest.mark.parametrize(
    "image", [np.zeros(3), np.zeros((2, 5, 6)), np.zeros((0, 3)), np.array([["a"]]), np.zeros((1, 1, 1, 1))]
)
def test_what_is_no_picture_is_refused(image):
    with pytest.raises(ConfigError, match="image must be"):
        image_layout(image)


def test_a_grid_places_each_picture():
    cells = [np.full((2, 3), value) for value in (0.2, 0.4, 0.6)]
    grid = to_grid(cells)
    assert grid.shape == (2 * 2 + 2, 3 * 2 + 2, 3)
    assert (grid[:2, :3] == 51).all()
    assert (grid[:2, 5:] == 102).all()
    assert (grid[4:, :3] == 153).all()
    assert (grid[4:, 5:] == 0).all()


def test_frames_share_one_scale_and_small_ones_grow():
    frames = np.stack([np.zeros((4, 4)), np.full((4, 4), 2.0), np.full((4, 4), 4.0)])
    video = to_frames(frames)
    assert video.shape == (3, 128, 128, 1)
    assert [int(frame.max()) for frame in video] == [0, 128, 255]


def test_masks_of_patches_take_the_grid():
    masks = torch.zeros(2, 6, dtype=torch.bool)
    masks[0, 1], masks[1, 5] = True, True
    video = to_frames(masks, grid=(2, 3))
    factor = video.shape[1] // 2
    assert video[:, ::factor, ::factor, 0].tolist() == [
        [[0, 255, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 0, 255]],
    ]


def test_videos_side_by_side():
    frames = torch.zeros(2, 3, 1, 130, 140)
    frames[1] = 1
    video = to_frames(frames)
    assert video.shape == (3, 130, 280, 1)
    assert (video[:, :, 140:] == 255).all()
    assert (video[:, :, :140] == 0).all()


@pytest.mark.parametrize(
    ("frames", "grid"),
    [
        (np.zeros((2, 7)), (2, 3)),
        (np.zeros((4, 4)), None),
        (np.zeros((2, 5, 4, 7)), None),
        (np.zeros((0, 4, 4)), None),
    ],
)
def test_what_is_no_video_is_refused(frames, grid):
    with pytest.raises(ConfigError, match="video"):
        check_frames(frames, grid)


def test_a_figure_is_drawn_without_pyplot():
    figure_module = pytest.importorskip(
        "matplotlib.figure", reason="matplotlib (extra figures) is not installed"
    )
    figure = figure_module.Figure(figsize=(2, 1), dpi=50)
    figure.patch.set_facecolor((1.0, 0.0, 0.0))
    pixels = figure_pixels(figure)
    assert pixels.shape == (50, 100, 3)
    assert (pixels == [255, 0, 0]).all()
