"""The figures of a run, drawn from what all ranks have merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hjepa_dist_metrics.figures.attention.overlay import outline, show_patches, show_picture, tint
from hjepa_dist_metrics.figures.canvas import CARD_WIDTH, card, colour_bar, finish, new_figure, panels
from hjepa_dist_metrics.figures.inputs import Bools, Floats, Grid, picture, upsample
from hjepa_dist_metrics.figures.masks.pictures import draw_block_sizes
from hjepa_dist_metrics.figures.predictions.projection import Method, project
from hjepa_dist_metrics.figures.style import (
    DIVERGING,
    MASKED,
    SEQUENTIAL,
    TICK_SIZE,
    colour,
    describe,
    group_legend,
    plot_area,
)
from hjepa_dist_metrics.figures.training.spectrum import (
    visualize_gram_matrices,
    visualize_hierarchy_resolution,
    visualize_spectrum,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_SCENES = 3
_LOOKS = {
    "prediction": {"ls": "", "marker": "o", "ms": 3},
    "target": {"ls": "", "marker": "x", "ms": 4},
}


def similarity_heatmap(images: Floats, cosines: Floats, masks: Bools, grid: Grid) -> Figure:
    """Draw images [k, C, H, W] and, below each, the cosine with the target [k, N] where masked [k, N]."""
    aspect = images.shape[2] / images.shape[3]
    figure, drawn = panels(2 * len(images), len(images), aspect=aspect, width=CARD_WIDTH)
    mappable: Any = None
    for i, (image, cosine, mask) in enumerate(zip(images, cosines, masks, strict=True)):
        top, bottom = drawn[i], drawn[len(images) + i]
        shown = picture(image)
        show_picture(top, shown)
        describe(top, "image")
        values = np.ma.masked_array(cosine, ~mask).reshape(grid)
        mappable = show_patches(bottom, values, shown, vmin=-1.0, vmax=1.0, cmap=DIVERGING)
        describe(bottom, f"mean {cosine[mask].mean():.2f}" if mask.any() else "no mask")
    bar = colour_bar(figure, mappable, drawn, "cosine of prediction and target, masked patches", "bottom")
    bar.set_ticks([-1.0, -0.5, 0.0, 0.5, 1.0])
    return card(finish(figure, "Prediction quality by patch"))


def mask_geometry(
    coverage: Floats, count: float, size_counts: Floats, grid: Grid, images: Floats, masks: Bools
) -> Figure:
    """Draw block sizes and shapes, sampled masks over their images, and how often each patch is masked.

    `coverage` [N] counts how often each patch was masked in `count` images, `size_counts`
    [rows + 1, columns + 1] how often a block of each height and width was drawn; `images` [k, C, H, W] and
    `masks` [k, N] are the samples.
    """
    with_blocks, scenes = bool(size_counts.any()), min(len(images), _MOST_SCENES)
    pictures = [[f"image{i}" for i in range(scenes)], [f"scene{i}" for i in range(scenes)]]
    mosaic: Any = [[*row, "coverage", "coverage"] for row in pictures]
    figure = new_figure(None, (CARD_WIDTH, 3.6 if with_blocks else 2.2))
    parts: Any = figure.subfigures(1 + with_blocks, 1, height_ratios=[1.3, 2.0][1 - with_blocks :])
    above, below = parts if with_blocks else (None, parts)
    axes: Any = below.subplot_mosaic(mosaic)
    if above is not None:
        sizes = np.argwhere(size_counts > 0)
        area, shape = above.subplots(1, 2)
        draw_block_sizes(area, shape, sizes, size_counts[size_counts > 0])
    for i in range(scenes):
        shown, flags = picture(images[i]), masks[i].reshape(grid)
        show_picture(axes[f"image{i}"], shown)
        show_picture(axes[f"scene{i}"], tint(shown, upsample(flags, shown), MASKED))
        describe(axes[f"image{i}"], "image")
        describe(axes[f"scene{i}"], f"{100 * flags.mean():.0f} %")
    share = 100 * coverage.reshape(grid) / max(count, 1)
    mappable = show_patches(axes["coverage"], share, None, vmin=0.0, vmax=100.0)
    colour_bar(below, mappable, axes["coverage"], "% of images", "bottom")
    describe(axes["coverage"], "how often masked")
    return card(finish(figure, f"Masks (orange) of {count:,.0f} images"))


def coverage_map(coverage: Floats, count: float, grid: Grid) -> Figure:
    """Draw how often each patch is masked, on a scale of its own range; arguments as in `mask_geometry`."""
    share = 100 * coverage.reshape(grid) / max(count, 1)
    figure, (ax,) = panels(1, 1, (CARD_WIDTH, 3.2))
    mappable = show_patches(
        ax, share, None, cmap=SEQUENTIAL, vmin=float(share.min()), vmax=float(share.max()) or 1.0
    )
    colour_bar(figure, mappable, ax, "masked (%)")
    describe(ax, f"{share.min():.0f} to {share.max():.0f} % of {count:,.0f} images")
    return card(finish(figure, "Mask coverage"))


def prediction_map(
    predictions: Sequence[Floats], targets: Sequence[Floats], method: Method = "pca", seed: int = 0
) -> Figure:
    """Draw predictions (dots) and targets (crosses) of each level, [n_l, D_l] each, in two dimensions.

    Levels of one width share a projection, coloured by level; others get a panel each.
    """
    alike = len({p.shape[1] for p in predictions}) == 1
    groups = [list(range(len(predictions)))] if alike else [[i] for i in range(len(predictions))]
    figure, drawn = panels(len(groups), 1, height=3.6, width=CARD_WIDTH)
    title = ""
    for ax, levels in zip(drawn, groups, strict=True):
        both = [np.concatenate([predictions[i], targets[i]]) for i in levels]
        found = project(np.concatenate(both), method, seed)
        title, parts = found.title, np.split(found.points, np.cumsum([len(b) for b in both])[:-1])
        for i, points in zip(levels, parts, strict=True):
            half = len(predictions[i])
            look: dict[str, Any] = {"color": colour(i), "alpha": 0.6}
            ax.scatter(points[:half, 0], points[:half, 1], s=8, lw=0, label=f"level {i}: prediction", **look)
            ax.scatter(
                points[half:, 0],
                points[half:, 1],
                s=10,
                lw=0.7,
                marker="x",
                label=f"level {i}: target",
                **look,
            )
        plot_area(ax)
        group_legend(ax, [f"level {i}" for i in levels], _LOOKS)
        describe(ax, "", found.x, found.y)
    return card(finish(figure, f"Predictions and targets, {title}"))


def patch_grid(patches: Floats, cosines: Floats, owners: Any, title: str) -> Figure:
    """Draw patches in the middle of their surroundings [k, C, 3 h, 3 w], with their cosines [k].

    `owners` [k, 2] are image and patch numbers.
    """
    aspect = patches.shape[2] / patches.shape[3] * 1.25
    figure, drawn = panels(len(patches), 4, aspect=aspect, width=CARD_WIDTH)
    low, high = float(patches.min()), float(patches.max())
    for ax, patch, cosine, (image, number) in zip(drawn, patches, cosines, owners, strict=True):
        # One stretch for all patches, or a dark one would look like a bright one.
        shown = patch if low >= 0 and high <= 1 else (patch - low) / max(high - low, 1e-12)
        show_picture(ax, picture(shown))
        outline(ax, (1, 1), (patch.shape[1] / 3, patch.shape[2] / 3), MASKED)
        describe(ax, f"cosine {cosine:.2f}\n#{image}, patch {number}")
        ax.title.set_fontsize(TICK_SIZE)
    return card(finish(figure, f"{title} (framed), with their image's number"))


def gram_matrix(matrix: Floats, name: str) -> Figure:
    """Draw one correlation matrix [D, D] of features."""
    return card(visualize_gram_matrices({name: matrix}, figsize=(CARD_WIDTH, 3.4)))


def spectrum(spectra: Mapping[str, Floats]) -> Figure:
    """Draw singular values by rank; arguments as in `visualize_spectrum`."""
    return card(visualize_spectrum(spectra, figsize=(CARD_WIDTH, 3.3)))


def resolution(tokens: Sequence[float], compute: Sequence[float], memory: Sequence[float]) -> Figure:
    """Draw each level's tokens and cost; arguments as in `visualize_hierarchy_resolution`."""
    return card(visualize_hierarchy_resolution(tokens, compute, memory, figsize=(CARD_WIDTH, 2.4)))
