"""Pictures, grids of pictures and videos as uint8 pixels, from arrays, tensors and figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError

Pixels = npt.NDArray[np.uint8]

_CHANNELS = (1, 3, 4)
_PADDING = 2
_SMALLEST_SIDE = 128


def to_pixels(image: Any, dataformats: str | None = None) -> Pixels:
    """Return uint8 [H, W, 1] or [H, W, 3] of one picture.

    `image` is a tensor or array, or anything that NumPy makes one of (a PIL image): [H, W], [C, H, W] or
    [H, W, C] with 1, 3 or 4 channels (the fourth, opacity, is dropped). Where both orders fit, tensors have
    channels first and arrays last; `dataformats`, "CHW", "HWC" or "HW", says it outright. Booleans become
    black and white. Numbers within [0, 1] go from black to white, other floats are stretched from their
    minimum to their maximum, and NaN and infinities are black. Raises ConfigError for another shape.
    """
    layout = image_layout(image, dataformats)
    array = _array(image)
    if "C" not in layout:
        return _to_bytes(array.transpose([layout.index(axis) for axis in "HW"])[..., None])
    return _to_bytes(array.transpose([layout.index(axis) for axis in "HWC"])[..., :3])


def image_layout(image: Any, dataformats: str | None = None) -> str:
    """Return the axes' order, "HW", "CHW" or "HWC", by shape alone; ConfigError for what is no picture."""
    held = image if isinstance(image, Tensor) else np.asarray(image)
    shape = tuple(held.shape)
    layout = dataformats or _guess(shape, first=isinstance(image, Tensor))
    known = layout is not None and len(layout) == len(shape) and set(layout) in ({*"HW"}, {*"CHW"})
    if layout is None or not known or 0 in shape or not _holds_numbers(held):
        given = f" and dataformats={dataformats!r}" if dataformats else ""
        raise ConfigError(
            "an image must be [H, W], [C, H, W] or [H, W, C] of numbers, with 1, 3 or 4 channels, got "
            f"{held.dtype} of shape {list(shape)}{given}"
        )
    return layout


def to_grid(images: Any) -> Pixels:
    """Return one picture of several, [B, C, H, W] or a sequence, laid out row by row with a thin gap.

    Every picture keeps its own scale. Smaller ones are padded to the size of the largest.
    """
    cells = [to_pixels(image) for image in images]
    if not cells:
        raise ConfigError("log_images needs at least one image, got none")
    height, width = (max(cell.shape[axis] for cell in cells) + _PADDING for axis in (0, 1))
    columns = math.ceil(math.sqrt(len(cells)))
    rows = math.ceil(len(cells) / columns)
    grid = np.zeros((rows * height, columns * width, 3), dtype=np.uint8)
    for index, cell in enumerate(cells):
        top, left = index // columns * height, index % columns * width
        grid[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return grid[: rows * height - _PADDING, : columns * width - _PADDING]


def to_frames(frames: Any, grid: Sequence[int] | None = None) -> Pixels:
    """Return uint8 [T, H, W, C] of a video; frames smaller than 128 pixels are enlarged by a whole factor.

    `frames` is [T, H, W], [T, C, H, W] or [T, H, W, C], or, with `grid` (rows, columns), one value a patch,
    [T, rows * columns]: masks, for instance. [N, T, C, H, W] shows N videos side by side. All frames share
    one scale, so that brightness compares over time.
    """
    check_frames(frames, grid)
    array = _array(frames)
    if grid is not None:
        array = array.reshape(len(array), *grid)
    if array.ndim == 5:
        array = np.concatenate(list(array), axis=-1)
    if array.ndim == 3:
        array = array[..., None]
    elif array.shape[1] in _CHANNELS:
        array = array.transpose(0, 2, 3, 1)
    factor = math.ceil(_SMALLEST_SIDE / max(array.shape[1:3]))
    return _to_bytes(array[..., :3]).repeat(factor, axis=1).repeat(factor, axis=2)


def check_frames(frames: Any, grid: Sequence[int] | None = None) -> None:
    """Raise ConfigError, by shape alone, unless `to_frames` can make a video of it."""
    held = frames if isinstance(frames, Tensor) else np.asarray(frames)
    shape = tuple(held.shape)
    if grid is not None and (len(shape) != 2 or len(grid) != 2 or shape[1] != grid[0] * grid[1]):
        patches = math.prod(grid)
        raise ConfigError(
            f"a video of patches on a grid of {list(grid)} must be [T, {patches}], got {list(shape)}"
        )
    moving = len(shape) in (3, 4, 5) and (len(shape) == 3 or shape[-3] in _CHANNELS or shape[-1] in _CHANNELS)
    if 0 in shape or not (moving or grid is not None) or not _holds_numbers(held):
        raise ConfigError(
            "a video must be [T, H, W], [T, C, H, W], [T, H, W, C] or [N, T, C, H, W] of numbers, "
            f"got {held.dtype} of shape {list(shape)}"
        )


def figure_pixels(figure: Any) -> Pixels:
    """Draw a matplotlib figure to uint8 [H, W, 3]; pyplot is not involved, nor is the figure closed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    previous = figure.canvas
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    pixels: Pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    figure.set_canvas(previous)
    return pixels


def is_figure(value: Any) -> bool:
    """Return whether a value is a matplotlib figure, without importing matplotlib."""
    return hasattr(value, "savefig") and hasattr(value, "canvas")


def _array(value: Any) -> npt.NDArray[Any]:
    if isinstance(value, Tensor):
        host = value.detach().cpu()
        return host.double().numpy() if host.is_floating_point() else host.numpy()
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
        return np.stack([_array(part) for part in value])
    return np.asarray(value)


def _holds_numbers(held: Tensor | npt.NDArray[Any]) -> bool:
    return not held.is_complex() if isinstance(held, Tensor) else held.dtype.kind in "biuf"


def _guess(shape: tuple[int, ...], first: bool) -> str | None:
    if len(shape) == 2:
        return "HW"
    if len(shape) != 3:
        return None
    fitting = [layout for layout, axis in (("CHW", 0), ("HWC", 2)) if shape[axis] in _CHANNELS]
    if len(fitting) == 2:
        return "CHW" if first else "HWC"
    return fitting[0] if fitting else None


def _to_bytes(array: npt.NDArray[Any]) -> Pixels:
    """Return values as bytes, by one scale for the whole array."""
    if array.dtype == np.uint8 and array.max() > 1:
        return np.ascontiguousarray(array)
    kind = array.dtype.kind
    values = array.astype(np.float64)
    finite = np.isfinite(values)
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 1.0)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif kind in "iu" and low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    scaled = (np.where(finite, values, low) - low) / ((high - low) or 1.0)
    return np.ascontiguousarray((255 * scaled).round().astype(np.uint8))
