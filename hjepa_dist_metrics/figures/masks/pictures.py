"""Pictures of masks: one mask, context and targets, strategies side by side, statistics, an animation.

A mask is boolean, True where a patch is masked: [N] or [rows, columns] for one, [n, N] or [n, rows, columns]
for many. `grid` is (rows, columns) where a flat mask is not square. Images are [C, H, W], [H, W] or
[H, W, 3], in whole patches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.figures.attention.overlay import outline, show_patches, show_picture, tint
from hjepa_dist_metrics.figures.canvas import (
    PRINT_DPI,
    FigureSize,
    Panels,
    colour_bar,
    finish,
    new_figure,
    panels,
    to_image,
)
from hjepa_dist_metrics.figures.inputs import (
    ArrayLike,
    Bools,
    Floats,
    Grid,
    grid_of,
    host,
    many_masks,
    one_mask,
    picture,
    upsample,
)
from hjepa_dist_metrics.figures.masks.animation import write_animation
from hjepa_dist_metrics.figures.style import (
    COLOURS,
    CONTEXT,
    MASKED,
    MUTED,
    SEQUENTIAL,
    count_axis,
    describe,
    legend,
    picture_area,
    plot_area,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MaskGenerator = Callable[[int], ArrayLike]

_HIDDEN = 0.5  # the grey that stands for a masked patch
_DEFAULT_GRID = (14, 14)
# Of target blocks: blue is the context's.
_FRAMES = tuple(colour for colour in COLOURS if colour != CONTEXT)


def visualize_masking_strategy(
    mask: ArrayLike,
    image: ArrayLike | None = None,
    *,
    grid: Grid | None = None,
    axes: Panels | None = None,
    figsize: FigureSize | None = None,
    save_path: str | Path | None = None,
    dpi: int = PRINT_DPI,
) -> Figure:
    """Draw one mask, over the image where one is given, and its share of each row and column."""
    shown, flags = _pair(image, mask, grid)
    figure, drawn = panels(2, 2, figsize, axes, height=3.8)
    _draw_mask(drawn[0], flags, shown)
    masked, total = int(flags.sum()), flags.size
    describe(drawn[0], f"{masked} of {total} patches masked ({100 * masked / total:.1f} %)")
    rows, columns = flags.mean(axis=1) * 100, flags.mean(axis=0) * 100
    drawn[1].plot(range(len(rows)), rows, marker="o", color=MASKED, label="rows")
    drawn[1].plot(range(len(columns)), columns, marker="s", ls="--", color=MUTED, label="columns")
    plot_area(drawn[1])
    count_axis(drawn[1], "x")
    drawn[1].set_ylim(-3, 103)
    legend(drawn[1], 2, below=True)
    describe(drawn[1], "where the mask lies", "row or column (patch)", "masked (%)")
    return finish(figure, "Masking strategy", save_path, dpi)


def visualize_masked_image(
    image: ArrayLike,
    mask: ArrayLike,
    *,
    grid: Grid | None = None,
    axes: Panels | None = None,
    figsize: FigureSize | None = None,
    save_path: str | Path | None = None,
    dpi: int = PRINT_DPI,
) -> Figure:
    """Draw the image, the mask, and the image with its masked patches in grey."""
    shown, flags = _pair(image, mask, grid)
    if shown is None:
        raise ConfigError("expected an image, got None")
    figure, drawn = panels(3, 3, figsize, axes, aspect=shown.shape[0] / shown.shape[1])
    show_picture(drawn[0], shown)
    describe(drawn[0], "image")
    _draw_mask(drawn[1], flags, None)
    describe(drawn[1], f"mask ({100 * flags.mean():.0f} % masked)")
    show_picture(drawn[2], np.where(upsample(flags, shown)[:, :, None], _HIDDEN, shown))
    describe(drawn[2], "what the encoder sees")
    return finish(figure, "Masked image", save_path, dpi)


def visualize_context_target_regions(
    image: ArrayLike,
    mask: ArrayLike,
    blocks: ArrayLike | None = None,
    *,
    grid: Grid | None = None,
    axes: Panels | None = None,
    figsize: FigureSize | None = None,
    save_path: str | Path | None = None,
    dpi: int = PRINT_DPI,
) -> Figure:
    """Draw context and targets tinted over the image, then each alone.

    `blocks` int [K, 4] are target rectangles (top, left, height, width in patches), each framed in its own
    colour; rows of height 0 are left out.
    """
    shown, flags = _pair(image, mask, grid)
    if shown is None:
        raise ConfigError("expected an image, got None")
    pixels = upsample(flags, shown)
    figure, drawn = panels(3, 3, figsize, axes, aspect=shown.shape[0] / shown.shape[1])
    show_picture(drawn[0], tint(tint(shown, pixels, MASKED), ~pixels, CONTEXT))
    describe(drawn[0], "context (blue), targets (orange)")
    show_picture(drawn[1], np.where(pixels[:, :, None], 1.0, shown))
    describe(drawn[1], f"context: {int((~flags).sum())} patches")
    show_picture(drawn[2], np.where(pixels[:, :, None], shown, 1.0))
    frames = _blocks(blocks, flags.shape)
    patch = (shown.shape[0] / flags.shape[0], shown.shape[1] / flags.shape[1])
    for i, (top, left, height, width) in enumerate(frames):
        outline(drawn[2], (top, left), patch, _FRAMES[i % len(_FRAMES)], (height, width))
    many = f" in {len(frames)} blocks" if len(frames) else ""
    describe(drawn[2], f"targets: {int(flags.sum())} patches{many}")
    return finish(figure, "Context and target regions", save_path, dpi)


def compare_masking_strategies(
    strategies: Mapping[str, ArrayLike],
    *,
    grid: Grid | None = None,
    cmap: str = SEQUENTIAL,
    figsize: FigureSize | None = None,
    save_path: str | Path | None = None,
    dpi: int = PRINT_DPI,
) -> Figure:
    """Draw a row for each named set of masks [n, N].

    A row shows two examples, how often each patch is masked, and the distribution of the ratio.
    """
    if not strategies:
        raise ConfigError("expected at least one strategy, got none")
    figure = new_figure(figsize, (9.0, 0.6 + 2.3 * len(strategies)))
    axes = [
        [figure.add_subplot(len(strategies), 4, 4 * r + c + 1) for c in range(4)]
        for r in range(len(strategies))
    ]
    drawn: Any = None
    for row, (name, masks) in zip(axes, strategies.items(), strict=True):
        flags = many_masks(masks, grid)
        for k in (0, 1):
            _draw_mask(row[k], flags[min(k, len(flags) - 1)], None)
            describe(row[k], f"example {k + 1}")
        row[0].set_ylabel(name, fontsize=11)
        drawn = _draw_coverage(row[2], flags, cmap)
        describe(row[2], "how often masked")
        _draw_ratios(row[3], flags)
    colour_bar(figure, drawn, [row[2] for row in axes], "masked (%)", "bottom")
    return finish(figure, "Masking strategies", save_path, dpi)


def animate_masking_process(
    image: ArrayLike,
    masks: ArrayLike,
    *,
    grid: Grid | None = None,
    frames_per_second: float = 2.0,
    figsize: FigureSize | None = None,
    save_path: str | Path | None = None,
    dpi: int = 100,
) -> Figure:
    """Show a mask growing, a frame for each of `masks` [n, N], and return the figure of the last frame.

    `save_path` takes the animation: .gif (Pillow) or .mp4 (ffmpeg). For a mask that grows block by block pass
    the union of the first k blocks as the k-th mask.
    """
    shown = picture(image)
    flags = many_masks(masks, grid, (shown.shape[0], shown.shape[1]))
    figure, (left, right) = panels(2, 2, figsize, aspect=shown.shape[0] / shown.shape[1])
    frames = []
    for number, mask in enumerate(flags):
        for ax in (left, right):
            ax.clear()
        show_picture(left, np.where(upsample(mask, shown)[:, :, None], _HIDDEN, shown))
        describe(left, f"frame {number + 1} of {len(flags)}")
        _draw_mask(right, mask, None)
        describe(right, f"{100 * mask.mean():.0f} % masked")
        if save_path is not None:
            frames.append(to_image(figure, dpi).pixels)
    if save_path is not None:
        write_animation(frames, save_path, frames_per_second)
    return figure


def visualize_multi_block_masking(
    num_samples: int = 9,
    generator: MaskGenerator | None = None,
    image: ArrayLike | None = None,
    *,
    grid: Grid | None = None,
    columns: int = 3,
    axes: Panels | None = None,
    figsize: FigureSize | None = None,
    save_path: str | Path | None = None,
    dpi: int = PRINT_DPI,
) -> Figure:
    """Draw `num_samples` random masks.

    `generator(n)` returns masks [n, N]; by default it is the reference's multi-block generator, on a grid
    of 14x14 patches unless `grid` says otherwise.
    """
    if num_samples < 1:
        raise ConfigError(f"num_samples is {num_samples!r}; allowed: 1 or more")
    masks = many_masks((generator or _reference_generator(grid or _DEFAULT_GRID))(num_samples), grid)
    figure, drawn = panels(len(masks), columns, figsize, axes, aspect=masks.shape[1] / masks.shape[2])
    shown = None if image is None else picture(image)
    for ax, mask in zip(drawn, masks, strict=True):
        _draw_mask(ax, mask, shown)
        describe(ax, f"{100 * mask.mean():.0f} % masked")
    return finish(figure, f"Multi-block masks on a {masks.shape[1]}x{masks.shape[2]} grid", save_path, dpi)


def plot_masking_statistics(
    masks: ArrayLike,
    blocks: ArrayLike | None = None,
    *,
    grid: Grid | None = None,
    axes: Panels | None = None,
    cmap: str = SEQUENTIAL,
    figsize: FigureSize | None = None,
    save_path: str | Path | None = None,
    dpi: int = PRINT_DPI,
) -> Figure:
    """Draw how often each patch is masked and the masks' ratios, of masks [n, N].

    With `blocks` int [n, K, 4] (top, left, height, width; height 0 for none) also the blocks' areas and
    aspect ratios: then it draws into four axes, else into two.
    """
    flags = many_masks(masks, grid)
    figure, drawn = panels(2 if blocks is None else 4, 2, figsize, axes, height=3.1)
    colour_bar(figure, _draw_coverage(drawn[0], flags, cmap), drawn[0], "masked (%)")
    describe(drawn[0], f"how often masked ({len(flags)} masks)")
    _draw_ratios(drawn[1], flags)
    if blocks is not None:
        sizes = _blocks(blocks, flags.shape[1:])[:, 2:]
        draw_block_sizes(drawn[2], drawn[3], sizes, np.ones(len(sizes)))
    return finish(figure, "Masking statistics", save_path, dpi)


def draw_block_sizes(area: Axes, ratio: Axes, sizes: Any, counts: Any) -> None:
    """Draw blocks' areas and aspect ratios; `sizes` [n, 2] are (height, width), `counts` [n] how often."""
    areas, aspects = sizes[:, 0] * sizes[:, 1], sizes[:, 0] / np.maximum(sizes[:, 1], 1)
    values, where = np.unique(areas, return_inverse=True)
    area.bar(values, np.bincount(where, weights=counts, minlength=len(values)), color=MASKED, width=0.8)
    edges = 2.0 ** np.linspace(-2.125, 2.125, 18)
    ratio.hist(np.clip(aspects, edges[0], edges[-1]), bins=list(edges), weights=counts, color=MASKED)
    ratio.set_xscale("log", base=2)
    ratio.set_xticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
    for ax in (area, ratio):
        plot_area(ax)
        count_axis(ax)
    describe(area, "area of the blocks", "area (patches)", "blocks")
    describe(ratio, "shape of the blocks", "height / width", "blocks")


def _pair(image: ArrayLike | None, mask: ArrayLike, grid: Grid | None) -> tuple[Floats | None, Bools]:
    shown = None if image is None else picture(image)
    size = None if shown is None else (shown.shape[0], shown.shape[1])
    return shown, one_mask(mask, grid, size)


def _draw_mask(ax: Axes, flags: Bools, image: Floats | None) -> None:
    """Draw masked patches orange: over the image, or over the blue of the context."""
    from matplotlib.colors import ListedColormap

    if image is not None:
        show_picture(ax, tint(image, upsample(flags, image), MASKED))
        return
    picture_area(ax)
    ax.imshow(flags, cmap=ListedColormap(["#C8DCEB", MASKED]), vmin=0, vmax=1, interpolation="nearest")
    rows, columns = flags.shape
    if max(rows, columns) <= 32:
        ax.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
        ax.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
        ax.grid(True, which="minor", color="white", linewidth=0.5)
        ax.tick_params(which="minor", length=0)


def _draw_coverage(ax: Axes, flags: Bools, cmap: str) -> Any:
    return show_patches(ax, 100 * flags.mean(axis=0), None, vmin=0.0, vmax=100.0, cmap=cmap)


def _draw_ratios(ax: Axes, flags: Bools) -> None:
    """Draw the distribution of the share of masked patches, and its mean."""
    ratios = 100 * flags.mean(axis=(1, 2))
    ax.hist(ratios, bins=list(np.linspace(0, 100, 26)), color=MASKED)
    ax.axvline(float(ratios.mean()), color=COLOURS[6], ls="--", lw=1.2)
    plot_area(ax)
    count_axis(ax)
    ax.set_xlim(0, 100)
    describe(ax, f"ratio, mean {ratios.mean():.0f} %", "masked patches (%)", "masks")


def _blocks(blocks: ArrayLike | None, shape: Sequence[int]) -> Any:
    """Return the real blocks, int [k, 4]; ConfigError for one that leaves the grid."""
    if blocks is None:
        return np.zeros((0, 4), dtype=np.int64)
    array = host(blocks).astype(np.int64)
    if array.shape[-1] != 4:
        raise ConfigError(
            f"expected blocks [..., 4] (top, left, height, width), got shape {list(array.shape)}"
        )
    array = array.reshape(-1, 4)
    array = array[array[:, 2] > 0]
    ends = array[:, :2] + array[:, 2:]
    if (array < 0).any() or (ends > np.asarray(shape)).any():
        raise ConfigError(f"a block leaves the grid of {shape[0]}x{shape[1]} patches: {array[0].tolist()}")
    return array


def _reference_generator(grid: Grid) -> MaskGenerator:
    from hjepa_dist_metrics.reference.hjepa.masking import MultiBlockMaskGenerator

    grid_of(grid[0] * grid[1], grid)
    return MultiBlockMaskGenerator(grid, min_visible=max(1, grid[0] * grid[1] // 8))
