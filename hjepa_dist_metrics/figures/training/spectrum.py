"""Pictures of second moments: singular values, correlations of features, cost by level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.figures.canvas import (
    PRINT_DPI,
    FigureSize,
    Panels,
    colour_bar,
    finish,
    panels,
)
from hjepa_dist_metrics.figures.inputs import ArrayLike, Grid, host
from hjepa_dist_metrics.figures.style import (
    DIVERGING,
    LINE_STYLES,
    TICK_SIZE,
    colour,
    describe,
    group_legend,
    legend,
    plot_area,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FLOOR = 1e-8  # relative to the largest singular value: below it there is only rounding


def visualize_spectrum(
    spectra: Mapping[str, ArrayLike],
    *,
    ax: Axes | None = None,
    figsize: FigureSize | None = None,
    save_path: str | Path | None = None,
    dpi: int = PRINT_DPI,
) -> Figure:
    """Draw singular values [D] by rank, each spectrum divided by its largest value, on a logarithmic scale.

    `spectra` maps a name (a level, a stream) to its singular values, in any order. Names such as
    "level 0, targets" give the lines of a level one colour, and those of a kind one style.
    """
    if not spectra:
        raise ConfigError("expected at least one spectrum, got none")
    figure, drawn = panels(1, 1, figsize, None if ax is None else [ax], height=4.2)
    groups = list(dict.fromkeys(name.partition(", ")[0] for name in spectra))
    kinds = list(dict.fromkeys(name.partition(", ")[2] for name in spectra))
    for name, values in spectra.items():
        group, _, kind = name.partition(", ")
        sigma = np.sort(host(values).reshape(-1))[::-1]
        top = max(float(sigma[0]), 1e-300) if sigma.size else 1.0
        style = LINE_STYLES[kinds.index(kind) % len(LINE_STYLES)]
        shown = np.maximum(sigma / top, _FLOOR)
        marker = "o" if len(sigma) == 1 else None
        drawn[0].semilogy(
            np.arange(1, len(sigma) + 1),
            shown,
            color=colour(groups.index(group)),
            ls=style,
            marker=marker,
            label=name,
        )
    _decades(drawn[0])
    plot_area(drawn[0])
    group_legend(drawn[0], groups, {kind: {"ls": LINE_STYLES[i % 4]} for i, kind in enumerate(kinds)})
    describe(drawn[0], "", "singular value, largest first", "relative to the largest")
    return finish(figure, "Spectrum of the features", save_path, dpi)


def _decades(ax: Axes) -> None:
    """Mark each decade with plain text: matplotlib's own formulas take two thirds of the drawing's time."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ax.yaxis.set_major_locator(LogLocator(numticks=12))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def visualize_gram_matrices(
    matrices: Mapping[str, ArrayLike],
    *,
    axes: Panels | None = None,
    cmap: str = DIVERGING,
    figsize: FigureSize | None = None,
    save_path: str | Path | None = None,
    dpi: int = PRINT_DPI,
) -> Figure:
    """Draw correlation matrices [D, D] of features side by side, from -1 to 1."""
    if not matrices:
        raise ConfigError("expected at least one matrix, got none")
    figure, drawn = panels(len(matrices), min(len(matrices), 3), figsize, axes, aspect=0.95)
    mappable: Any = None
    for ax, (name, values) in zip(drawn, matrices.items(), strict=True):
        matrix = host(values)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ConfigError(f"expected the matrix {name!r} as [D, D], got shape {list(matrix.shape)}")
        mappable = ax.imshow(matrix, vmin=-1.0, vmax=1.0, cmap=cmap, interpolation="nearest")
        describe(ax, name, "feature", "feature" if ax is drawn[0] else "")
    colour_bar(figure, mappable, drawn, "correlation")
    return finish(figure, "", save_path, dpi)


def visualize_hierarchy_resolution(
    tokens: Sequence[float],
    compute: Sequence[float],
    memory: Sequence[float],
    *,
    grids: Sequence[Grid] | None = None,
    axes: Panels | None = None,
    figsize: FigureSize | None = None,
    save_path: str | Path | None = None,
    dpi: int = PRINT_DPI,
) -> Figure:
    """Draw each level's number of tokens, and its shares of arithmetic and memory in percent, as bars."""
    if not len(tokens) == len(compute) == len(memory) > 0:
        raise ConfigError(
            f"expected as many levels everywhere, got {len(tokens)} tokens, {len(compute)} compute and "
            f"{len(memory)} memory shares"
        )
    names = [f"level {i}" + (f"\n{g[0]}x{g[1]}" if grids else "") for i, g in enumerate(grids or tokens)]  # type: ignore[index]
    figure, (left, right) = panels(2, 2, figsize, axes, height=3.4)
    places = np.arange(len(tokens))
    bars = left.bar(places, tokens, color=[colour(i) for i in range(len(tokens))], width=0.6)
    left.bar_label(bars, fmt="%g", fontsize=TICK_SIZE, padding=2)
    for offset, (label, shares, number) in enumerate((("arithmetic", compute, 0), ("memory", memory, 4))):
        drawn = right.bar(
            places + 0.38 * (offset - 0.5), shares, width=0.36, color=colour(number), label=label
        )
        right.bar_label(drawn, fmt="%.0f", fontsize=TICK_SIZE, padding=2)
    for ax in (left, right):
        plot_area(ax)
        ax.set_xticks(places, names, fontsize=TICK_SIZE)
        ax.margins(y=0.12)
    legend(right, 2, below=True)
    describe(left, "resolution", "", "tokens of an image")
    describe(right, "cost", "", "share of all levels (%)")
    return finish(figure, "Hierarchy: resolution and cost", save_path, dpi)
