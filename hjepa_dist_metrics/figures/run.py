"""The figures of a run, drawn from what all ranks have merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hjepa_dist_metrics.figures.attention.overlay import outline, show_patches, show_picture, tint
from hjepa_dist_metrics.figures.canvas import colour_bar, finish, new_figure, panels
from hjepa_dist_metrics.figures.inputs import Bools, Floats, Grid, picture, upsample
from hjepa_dist_metrics.figures.masks.pictures import draw_block_sizes
from hjepa_dist_metrics.figures.predictions.projection import Method, project
from hjepa_dist_metrics.figures.style import (
    MASKED,
    SEQUENTIAL,
    TICK_SIZE,
    colour,
    describe,
    plot_area,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH = 9.0
_MOST_SCENES = 3


def similarity_heatmap(images: Floats, cosines: Floats, masks: Bools, grid: Grid) -> Figure:
    """Draw images [k, C, H, W] and, below each, the cosine with the target [k, N] where masked [k, N]."""
    figure, drawn = panels(2 * len(images), len(images), aspect=images.shape[2] / images.shape[3])
    mappable: Any = None
    for i, (image, cosine, mask) in enumerate(zip(images, cosines, masks, strict=True)):
        top, bottom = drawn[i], drawn[len(images) + i]
        shown = picture(image)
        show_picture(top, shown)
        describe(top, "image")
        values = np.ma.masked_array(cosine, ~mask).reshape(grid)
        mappable = show_patches(bottom, values, shown, vmin=-1.0, vmax=1.0)
        describe(bottom, f"mean cosine {cosine[mask].mean():.2f}" if mask.any() else "nothing masked")
    colour_bar(figure, mappable, drawn[len(images) :], "cosine of prediction and target")
    return finish(figure, "Prediction quality by patch")


def mask_geometry(
    coverage: Floats, count: float, size_counts: Floats, grid: Grid, images: Floats, masks: Bools
) -> Figure:
    """Draw block sizes and shapes, sampled masks over their images, and how often each patch is masked.

    `coverage` [N] counts how often each patch was masked in `count` images, `size_counts`
    [rows + 1, columns + 1] how often a block of each height and width was drawn; `images` [k, C, H, W] and
    `masks` [k, N] are the samples.
    """
    with_blocks, scenes = bool(size_counts.any()), min(len(images), _MOST_SCENES)
    rows = [["area"] * 3 + ["shape"] * 3] if with_blocks else []
    cells = [f"scene{i}" for i in range(scenes)] + ["coverage"]
    span = 12 // len(cells)
    mosaic: list[Any] = [[name for name in row for _ in range(2)] for row in rows]
    mosaic += [[name for name in cells for _ in range(span)]]
    figure = new_figure(None, (_WIDTH, 3.1 * len(mosaic)))
    axes: Any = figure.subplot_mosaic(mosaic)
    if with_blocks:
        sizes = np.argwhere(size_counts > 0)
        draw_block_sizes(axes["area"], axes["shape"], sizes, size_counts[size_counts > 0])
    for i in range(scenes):
        shown, flags = picture(images[i]), masks[i].reshape(grid)
        show_picture(axes[f"scene{i}"], tint(shown, upsample(flags, shown), MASKED))
        describe(axes[f"scene{i}"], f"{100 * flags.mean():.0f} % masked")
    share = 100 * coverage.reshape(grid) / max(count, 1)
    mappable = show_patches(axes["coverage"], share, None, vmin=0.0, vmax=100.0)
    colour_bar(figure, mappable, axes["coverage"], "masked (%)", "bottom")
    describe(axes["coverage"], "how often masked")
    return finish(figure, f"Masks of {count:,.0f} images")


def coverage_map(coverage: Floats, count: float, grid: Grid) -> Figure:
    """Draw how often each patch is masked, on a scale of its own range; arguments as in `mask_geometry`."""
    share = 100 * coverage.reshape(grid) / max(count, 1)
    figure, (ax,) = panels(1, 1, (5.0, 4.2))
    mappable = show_patches(
        ax, share, None, cmap=SEQUENTIAL, vmin=float(share.min()), vmax=float(share.max()) or 1.0
    )
    colour_bar(figure, mappable, ax, "masked (%)")
    describe(ax, f"{share.min():.0f} to {share.max():.0f} % of {count:,.0f} images")
    return finish(figure, "Mask coverage")


def prediction_map(
    predictions: Sequence[Floats], targets: Sequence[Floats], method: Method = "pca", seed: int = 0
) -> Figure:
    """Draw predictions (dots) and targets (crosses) of each level, [n_l, D_l] each, in two dimensions.

    Levels of one width share a projection, coloured by level; others get a panel each.
    """
    alike = len({p.shape[1] for p in predictions}) == 1
    groups = [list(range(len(predictions)))] if alike else [[i] for i in range(len(predictions))]
    figure, drawn = panels(len(groups), min(len(groups), 2), height=5.6 if alike else 4.0)
    title = ""
    for ax, levels in zip(drawn, groups, strict=True):
        both = [np.concatenate([predictions[i], targets[i]]) for i in levels]
        found = project(np.concatenate(both), method, seed)
        title, parts = found.title, np.split(found.points, np.cumsum([len(b) for b in both])[:-1])
        for i, points in zip(levels, parts, strict=True):
            half = len(predictions[i])
            look: dict[str, Any] = {"color": colour(i), "alpha": 0.6}
            ax.scatter(points[:half, 0], points[:half, 1], s=16, lw=0, label=f"level {i}: prediction", **look)
            ax.scatter(
                points[half:, 0], points[half:, 1], s=20, lw=1, marker="x", label=f"level {i}: target", **look
            )
        plot_area(ax)
        ax.legend(fontsize=TICK_SIZE, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        describe(ax, "", found.x, found.y)
    return finish(figure, f"Predictions and targets, {title}")


def patch_grid(patches: Floats, cosines: Floats, owners: Any, title: str) -> Figure:
    """Draw patches in the middle of their surroundings [k, C, 3 h, 3 w], with their cosines [k].

    `owners` [k, 2] are image and patch numbers.
    """
    figure, drawn = panels(len(patches), 6, aspect=patches.shape[2] / patches.shape[3] * 1.15)
    low, high = float(patches.min()), float(patches.max())
    for ax, patch, cosine, (image, number) in zip(drawn, patches, cosines, owners, strict=True):
        # One stretch for all patches, or a dark one would look like a bright one.
        shown = patch if low >= 0 and high <= 1 else (patch - low) / max(high - low, 1e-12)
        show_picture(ax, picture(shown))
        outline(ax, (1, 1), (patch.shape[1] / 3, patch.shape[2] / 3), MASKED)
        describe(ax, f"cosine {cosine:.2f}\nimage {image}, patch {number}")
        ax.title.set_fontsize(TICK_SIZE)
    return finish(figure, title)
