"""Patches on pictures: heat maps, outlines, tints. All coordinates are the picture's pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hjepa_dist_metrics.figures.inputs import Bools, Floats, require_patches
from hjepa_dist_metrics.figures.style import SEQUENTIAL, picture_area

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage


def show_picture(ax: Axes, image: Floats) -> AxesImage:
    """Draw a picture [H, W, 3] in its pixels."""
    picture_area(ax)
    return ax.imshow(image, interpolation="nearest")


def show_patches(ax: Axes, values: Floats, image: Floats | None = None, **limits: Any) -> AxesImage:
    """Draw per-patch values [rows, columns], over a faded picture where one is given.

    `limits` are imshow's vmin, vmax and cmap. The extent is the picture's, or a unit a patch.
    """
    limits.setdefault("cmap", SEQUENTIAL)
    picture_area(ax)
    if image is None:
        return ax.imshow(values, interpolation="nearest", **limits)
    require_patches(image, (values.shape[0], values.shape[1]))
    height, width = image.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    faded = 0.35 + 0.45 * image.mean(axis=-1)  # low in contrast, or the picture would drown the colours
    ax.imshow(faded, cmap="gray", vmin=0, vmax=1, interpolation="nearest", extent=extent)
    return ax.imshow(values, interpolation="nearest", alpha=0.65, extent=extent, **limits)


def tint(image: Floats, flags: Floats | Bools, colour: str, strength: float = 0.55) -> Floats:
    """Return the picture with `colour` mixed in where the pixel's flag [H, W] is set."""
    from matplotlib.colors import to_rgb

    weight = strength * np.asarray(flags, dtype=np.float64)[:, :, None]
    return image * (1 - weight) + np.asarray(to_rgb(colour)) * weight


def outline(
    ax: Axes, cell: tuple[int, int], patch: tuple[float, float], colour: str, size: tuple[int, int] = (1, 1)
) -> None:
    """Frame `size` patches from `cell` = (row, column) on; `patch` is a patch's (height, width)."""
    from matplotlib.patches import Rectangle

    corner = (cell[1] * patch[1] - 0.5, cell[0] * patch[0] - 0.5)
    ax.add_patch(
        Rectangle(corner, size[1] * patch[1], size[0] * patch[0], fill=False, edgecolor=colour, linewidth=2.0)
    )
