"""Pictures of predictions, targets, features and reconstructions.

Features are [B, N, D] or [N, D] (one image) with N patches by rows; `grid` is (rows, columns) where N is not
a square. Images are [B, C, H, W] or one of [C, H, W], [H, W], [H, W, 3].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.figures.attention.overlay import show_patches, show_picture
from hjepa_dist_metrics.figures.canvas import (
    PRINT_DPI,
    FigureSize,
    Panels,
    colour_bar,
    finish,
    panels,
)
from hjepa_dist_metrics.figures.gather import sample_rows
from hjepa_dist_metrics.figures.inputs import (
    ArrayLike,
    Floats,
    Grid,
    grid_of,
    host,
    one_mask,
    picture,
    pictures,
    rows,
)
from hjepa_dist_metrics.figures.predictions.comparison import cosines, squared_errors
from hjepa_dist_metrics.figures.predictions.neighbours import Neighbours, nearest_neighbours
from hjepa_dist_metrics.figures.predictions.projection import Method, Projection, project
from hjepa_dist_metrics.figures.style import (
    COLOURS,
    DIVERGING,
    MASKED,
    MUTED,
    TICK_SIZE,
    colour,
    count_axis,
    describe,
    plot_area,
)
from hjepa_dist_metrics.metrics import Collapse
from hjepa_dist_metrics.metrics.reconstruction.image_quality import psnr
from hjepa_dist_metrics.metrics.ssl.formulas.spectrum import covariance_spectrum
from hjepa_dist_metrics.parallel import ProcessContext

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ERROR_MAP = "magma"
_COSINE_TICKS = (-1.0, -0.5, 0.0, 0.5, 1.0)


def visualize_predictions(
    predictions: ArrayLike,
    targets: ArrayLike,
    images: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    index: int = 0,
    grid: Grid | None = None,
    axes: Panels | None = None,
    cmap: str = DIVERGING,
    figsize: FigureSize | None = None,
    save_path: str | Path | None = None,
    dpi: int = PRINT_DPI,
) -> Figure:
    """Draw each patch's cosine with its target and squared error for image `index`, and all cosines.

    `mask` [N] or [B, N] leaves visible patches out; without it all patches count. The image comes first where
    `images` are given. The last panel is the distribution of the cosine over the whole batch.
    """
    cosine, error = cosines(predictions, targets), squared_errors(predictions, targets)
    batch, count = cosine.shape
    if not 0 <= index < batch:
        raise ConfigError(f"there are {batch} images, got index {index}")
    shown = None if images is None else pictures(images)[index]
    size = None if shown is None else (shown.shape[0], shown.shape[1])
    shape = grid_of(count, grid, size, "prediction")
    flags = _token_mask(mask, batch, count)
    figure, drawn = panels(
        3 if shown is None else 4, 4 if shown is not None else 3, figsize, axes, height=3.0
    )
    if shown is not None:
        show_picture(drawn[0], shown)
        describe(drawn[0], f"image {index}" + (f" of {batch}" if batch > 1 else ""))
    visible = ~flags[index].reshape(shape)
    for ax, values, limits, label in (
        (drawn[-3], cosine, {"vmin": -1.0, "vmax": 1.0, "cmap": cmap}, "cosine"),
        (
            drawn[-2],
            error,
            {"vmin": 0.0, "vmax": _top(error[flags]), "cmap": _ERROR_MAP},
            "squared error",
        ),
    ):
        mappable = show_patches(
            ax, np.ma.masked_array(values[index].reshape(shape), visible), shown, **limits
        )
        bar = colour_bar(figure, mappable, ax, label, "bottom")
        if label == "cosine":
            bar.set_ticks(_COSINE_TICKS)
        describe(ax, f"{label} by patch")
    _draw_cosines(drawn[-1], cosine[flags])
    return finish(figure, "Predictions against targets", save_path, dpi)


def visualize_hierarchical_predictions(
    predictions: Sequence[ArrayLike],
    targets: Sequence[ArrayLike],
    image: ArrayLike | None = None,
    masks: Sequence[ArrayLike] | None = None,
    *,
    index: int = 0,
    grids: Sequence[Grid] | None = None,
    axes: Panels | None = None,
    cmap: str = DIVERGING,
    figsize: FigureSize | None = None,
    save_path: str | Path | None = None,
    dpi: int = PRINT_DPI,
) -> Figure:
    """Draw each level's cosines over one image, fine to coarse, and their distribution over the batch.

    Lists run over levels: predictions and targets [B, N_l, D], masks bool [B, N_l], grids (rows, columns).
    """
    levels = len(predictions)
    given = {"targets": targets, "masks": masks, "grids": grids}
    for name, value in given.items():
        if value is not None and len(value) != levels:
            raise ConfigError(f"got predictions of {levels} levels and {name} of {len(value)}")
    shown = None if image is None else picture(image)
    figure, drawn = panels(2 * levels, levels, figsize, axes, height=2.9)
    mappable: Any = None
    for level, (predicted, wanted) in enumerate(zip(predictions, targets, strict=True)):
        cosine = cosines(predicted, wanted)
        size = None if shown is None else (shown.shape[0], shown.shape[1])
        shape = grid_of(cosine.shape[1], None if grids is None else grids[level], size, f"level {level}")
        flags = _token_mask(None if masks is None else masks[level], *cosine.shape)
        values = np.ma.masked_array(cosine[index].reshape(shape), ~flags[index].reshape(shape))
        fits = shown is not None and not (shown.shape[0] % shape[0] or shown.shape[1] % shape[1])
        mappable = show_patches(drawn[level], values, shown if fits else None, vmin=-1.0, vmax=1.0, cmap=cmap)
        describe(drawn[level], f"level {level}: {shape[0]}x{shape[1]} tokens")
        _draw_cosines(drawn[levels + level], cosine[flags])
    colour_bar(figure, mappable, drawn[:levels], "cosine").set_ticks(_COSINE_TICKS)
    return finish(figure, "Predictions by level", save_path, dpi)


def visualize_feature_space(
    features: ArrayLike,
    labels: ArrayLike | None = None,
    method: Method = "pca",
    *,
    sample: int = 2000,
    seed: int = 0,
    context: ProcessContext | None = None,
    names: Sequence[str] | None = None,
    ax: Axes | None = None,
    figsize: FigureSize | None = None,
    save_path: str | Path | None = None,
    dpi: int = PRINT_DPI,
) -> Figure:
    """Draw features [n, D] of all ranks in two dimensions, coloured by integer `labels` [n].

    At most `sample` rows are drawn, the same uniform sample at any world size. A collective call with more
    than one rank: every rank gets the figure, the main one saves. `names` are the classes' names.
    """
    place = context or ProcessContext.current()
    array = rows(features, "features")
    classes = np.full(len(array), -1.0) if labels is None else host(labels).reshape(-1)
    if len(classes) != len(array):
        raise ConfigError(f"expected a label for each of {len(array)} rows, got {len(classes)}")
    kept = sample_rows(np.column_stack([array, classes]), sample, place, seed)
    found = project(kept[:, :-1], method, seed)
    figure, drawn = panels(1, 1, figsize, None if ax is None else [ax], height=6.0)
    _draw_points(drawn[0], found, kept[:, -1].astype(int), names)
    title = f"Feature space, {found.title} of {len(kept)} rows"
    return finish(figure, title, save_path if place.is_main else None, dpi)


def visualize_nearest_neighbors(
    features: ArrayLike,
    images: ArrayLike,
    queries: Sequence[int] = (0, 1, 2, 3),
    k: int = 5,
    *,
    context: ProcessContext | None = None,
    axes: Panels | None = None,
    figsize: FigureSize | None = None,
    save_path: str | Path | None = None,
    dpi: int = PRINT_DPI,
) -> Figure:
    """Draw query images and, beside each, its `k` nearest images of all ranks by cosine, exactly.

    `features` [n, D] and `images` [n, C, H, W] are this rank's. Queries are numbers of the main rank's
    images; an image is not its own neighbour. A collective call with more than one rank: every rank gets the
    figure, the main one saves.
    """
    place = context or ProcessContext.current()
    shown = np.stack(pictures(images))
    found = nearest_neighbours(rows(features, "features"), shown, queries, k, place)
    figure, drawn = panels(len(found) * (k + 1), k + 1, figsize, axes, aspect=shown.shape[1] / shown.shape[2])
    for row, neighbours in enumerate(found):
        _draw_neighbours(drawn[row * (k + 1) : (row + 1) * (k + 1)], neighbours)
    return finish(figure, "Nearest neighbours by cosine", save_path if place.is_main else None, dpi)


def visualize_reconstruction(
    images: ArrayLike,
    reconstructions: ArrayLike,
    *,
    count: int = 4,
    axes: Panels | None = None,
    cmap: str = _ERROR_MAP,
    figsize: FigureSize | None = None,
    save_path: str | Path | None = None,
    dpi: int = PRINT_DPI,
) -> Figure:
    """Draw up to `count` images, their reconstructions and the absolute error, with each one's PSNR.

    Both [B, C, H, W] in [0, 1]. PSNR as `Reconstruction` has it: a perfect image reads 100 dB.
    """
    real, made = host(images), host(reconstructions)
    if real.shape != made.shape or real.ndim != 4:
        shapes = f"{list(real.shape)} and {list(made.shape)}"
        raise ConfigError(f"expected images and reconstructions [B, C, H, W] of one shape, got {shapes}")
    count = min(count, len(real))
    error = np.abs(real - made).mean(axis=1)
    figure, drawn = panels(3 * count, 3, figsize, axes, aspect=real.shape[2] / real.shape[3])
    mappable: Any = None
    for i in range(count):
        left, middle, right = drawn[3 * i : 3 * i + 3]
        show_picture(left, picture(torch.from_numpy(real[i].clip(0, 1))))
        show_picture(middle, picture(torch.from_numpy(made[i].clip(0, 1))))
        mappable = show_patches(right, error[i], None, vmin=0.0, vmax=_top(error[:count]), cmap=cmap)
        describe(left, f"image {i}")
        describe(middle, f"reconstruction, {_psnr(real[i], made[i]):.1f} dB")
        describe(right, "absolute error")
    colour_bar(figure, mappable, drawn[2::3], "absolute error")
    return finish(figure, "Reconstructions (PSNR)", save_path, dpi)


def visualize_embedding_distribution(
    features: ArrayLike,
    *,
    axes: Panels | None = None,
    figsize: FigureSize | None = None,
    save_path: str | Path | None = None,
    dpi: int = PRINT_DPI,
) -> Figure:
    """Draw how features [n, D] spread: norms, spread of each dimension, singular values, pairwise cosines.

    The numbers in the titles are those of the metric `Collapse`.
    """
    array = rows(features, "features")
    metric = Collapse(array.shape[1])
    metric.update(torch.from_numpy(array))
    values = metric.compute_from(metric.states)
    figure, (norms, spread, spectrum, cosine) = panels(4, 2, figsize, axes, height=3.1)
    norms.hist(np.linalg.norm(array, axis=1), bins=40, color=COLOURS[0])
    describe(norms, "length of the rows", "L2 norm", "rows")
    unit = metric.unit
    spread.plot(np.sort(np.sqrt(np.clip(np.diag(unit.matrix.numpy()), 0, None)))[::-1], color=COLOURS[1])
    spread.axhline(array.shape[1] ** -0.5, color=MUTED, ls="--", lw=1)
    spread.set_ylim(bottom=0)
    describe(
        spread,
        f"spread of unit rows, mean {values['collapse/mean_std_per_dim']:.3f}\n(dashed: isotropic, 1/√D)",
        "dimension, sorted",
        "standard deviation",
    )
    sigma = np.sqrt(covariance_spectrum(unit.matrix, unit.mean).numpy()[::-1])
    spectrum.semilogy(np.arange(1, len(sigma) + 1), np.maximum(sigma, 1e-8), color=COLOURS[2])
    rank = f"effective rank {values['collapse/effective_rank']:.1f} of {array.shape[1]}"
    describe(spectrum, f"spectrum, {rank}", "number", "singular value")
    histogram = values.get("collapse/similarity_histogram")
    if histogram is not None:
        cosine.stairs(histogram.counts, histogram.edges, fill=True, color=COLOURS[3])
    cosine.axvline(values["collapse/mean_similarity"], color=COLOURS[6], ls="--", lw=1.2)
    cosine.set_xlim(-1, 1)
    describe(cosine, f"cosine of two rows, mean {values['collapse/mean_similarity']:.2f}", "cosine", "pairs")
    for ax in (norms, spread, spectrum, cosine):
        plot_area(ax)
    return finish(figure, f"Distribution of {len(array)} embeddings", save_path, dpi)


def _token_mask(mask: ArrayLike | None, batch: int, count: int) -> Any:
    """Return bool [B, N] of the tokens that count; ConfigError for a mask of other tokens."""
    if mask is None:
        return np.ones((batch, count), dtype=bool)
    flags = (
        one_mask(mask, (1, count))
        if host(mask).size == count
        else host(mask).reshape(host(mask).shape[0], -1)
    )
    if flags.shape not in ((1, count), (batch, count)):
        raise ConfigError(f"expected a mask [{count}] or [{batch}, {count}], got {list(host(mask).shape)}")
    return np.broadcast_to(flags.astype(bool), (batch, count))


def _draw_cosines(ax: Axes, values: Floats) -> None:
    """Draw the distribution of the cosine and its mean."""
    ax.hist(values, bins=list(np.linspace(-1, 1, 41)), color=COLOURS[0])
    mean = float(values.mean()) if values.size else float("nan")
    if values.size:
        ax.axvline(mean, color=COLOURS[6], ls="--", lw=1.2)
    plot_area(ax)
    count_axis(ax)
    ax.set_xlim(-1, 1)
    describe(ax, f"mean {mean:.2f}, {values.size} tokens", "cosine", "tokens")


def _draw_points(ax: Axes, found: Projection, classes: Any, names: Sequence[str] | None) -> None:
    present = np.unique(classes)
    markers = ("o", "s", "^", "D", "v", "P", "X")
    for number, label in enumerate(present):
        chosen = classes == label
        name = None if label < 0 else names[label] if names is not None else f"class {label}"
        marker = markers[(number + number // len(COLOURS)) % len(markers)]
        x, y = found.points[chosen].T
        ax.scatter(x, y, s=22, alpha=0.7, lw=0, color=colour(number), marker=marker, label=name)
    plot_area(ax)
    describe(ax, "", found.x, found.y)
    if len(present) > 1:
        ax.legend(fontsize=TICK_SIZE, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_neighbours(axes: Sequence[Axes], found: Neighbours) -> None:
    show_picture(axes[0], found.query)
    describe(axes[0], f"query {found.number}")
    for spine in axes[0].spines.values():
        spine.set(visible=True, color=MASKED, linewidth=2)
    for ax, image, cosine in zip(axes[1:], found.pictures, found.cosines, strict=False):
        show_picture(ax, image)
        describe(ax, f"cosine {cosine:.3f}")
    for ax in axes[1 + len(found.pictures) :]:
        ax.set_axis_off()


def _psnr(real: Floats, made: Floats) -> float:
    prediction, target = (torch.from_numpy(np.ascontiguousarray(image))[None] for image in (made, real))
    return float(psnr(prediction, target))


def _top(values: Floats) -> float:
    return float(values.max()) if values.size and values.max() > 0 else 1.0
