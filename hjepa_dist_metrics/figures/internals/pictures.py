"""Pictures of the inside of a model: activations over depth, attention by head, load by expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.figures.canvas import colour_bar, finish, panels
from hjepa_dist_metrics.figures.style import (
    LINE_STYLES,
    SEQUENTIAL,
    TICK_SIZE,
    colour,
    count_axis,
    describe,
    legend,
    plot_area,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_ROWS = 40  # of names beside a heat map


def activation_depth(rms: Mapping[str, float], absmax: Mapping[str, float], title: str = "") -> Figure:
    """Draw root mean square and largest magnitude of blocks over depth, on a logarithmic scale.

    Blocks go by their names, in order; those whose names differ in their last number only share a line.
    """
    figure, (left, right) = panels(2, 2, height=3.8)
    for ax, values, what in ((left, rms, "root mean square"), (right, absmax, "largest magnitude")):
        for number, (stack, line) in enumerate(_stacks(values).items()):
            shown = np.maximum(np.asarray(line, dtype=np.float64), 1e-30)
            style = LINE_STYLES[number // 7 % len(LINE_STYLES)]
            ax.plot(
                np.arange(len(shown)), shown, color=colour(number), ls=style, marker="o", ms=3, label=stack
            )
        ax.set_yscale("log")
        _plain_numbers(ax)
        plot_area(ax)
        count_axis(ax, "x")
        describe(ax, what, "block")
    legend(left)
    return finish(figure, title or "Activations over depth")


def _stacks(values: Mapping[str, float]) -> dict[str, list[float]]:
    """Return the values of blocks, in order, by the name of their stack."""
    stacks: dict[str, list[float]] = {}
    for name, value in values.items():
        parts = name.split(".")
        numbers = [i for i, part in enumerate(parts) if part.isdigit()]
        if numbers:
            parts[numbers[-1]] = "*"
        stacks.setdefault(".".join(parts) if numbers else "model", []).append(value)
    return stacks


def _plain_numbers(ax: Axes) -> None:
    """Mark with plain text: matplotlib's own formulas take two thirds of the drawing's time."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def head_maps(numbers: Mapping[str, Mapping[str, Sequence[float]]], title: str = "") -> Figure:
    """Draw a heat map of layers by heads for each quantity: `numbers` maps it to layers' values by head.

    Layers may have different numbers of heads.
    """
    if not numbers:
        raise ConfigError("expected at least one quantity, got none")
    count = max(len(layers) for layers in numbers.values())
    figure, drawn = panels(len(numbers), len(numbers), height=min(1.6 + 0.24 * min(count, _MOST_ROWS), 9.0))
    for ax, (what, layers) in zip(drawn, numbers.items(), strict=True):
        mappable = _heat_map(ax, layers, names=ax is drawn[0])
        describe(ax, what, "head")
        colour_bar(figure, mappable, ax, "", "bottom")
    return finish(figure, title or "Attention by head")


def expert_map(shares: Mapping[str, Sequence[float]], title: str = "") -> Figure:
    """Draw each layer's load by expert, as a multiple of the mean: 1 everywhere is balanced."""
    if not shares:
        raise ConfigError("expected at least one layer, got none")
    figure, (ax,) = panels(1, 1, height=min(1.8 + 0.24 * min(len(shares), _MOST_ROWS), 9.0))
    colour_bar(figure, _heat_map(ax, shares, names=True, low=0.0), ax, "load / mean load")
    describe(ax, "", "expert")
    return finish(figure, title or "Load of the experts")


def _heat_map(ax: Axes, rows: Mapping[str, Sequence[float]], *, names: bool, low: float | None = None) -> Any:
    """Draw rows of values by name; what a row lacks stays white."""
    width = max(len(values) for values in rows.values())
    table = np.full((len(rows), width), np.nan)
    for place, values in enumerate(rows.values()):
        table[place, : len(values)] = values
    masked = np.ma.masked_invalid(table)
    mappable = ax.imshow(masked, cmap=SEQUENTIAL, interpolation="nearest", aspect="auto", vmin=low)
    count_axis(ax, "x")
    shown = np.arange(0, len(rows), -(-len(rows) // _MOST_ROWS))
    labels = [list(rows)[place] for place in shown] if names else [""] * len(shown)
    ax.set_yticks(shown, labels, fontsize=TICK_SIZE)
    return mappable
