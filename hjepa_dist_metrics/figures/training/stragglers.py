"""The map of ranks and steps that shows which rank holds the others up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hjepa_dist_metrics.figures.canvas import colour_bar, finish, panels
from hjepa_dist_metrics.figures.inputs import Floats
from hjepa_dist_metrics.figures.style import TICK_SIZE, count_axis, describe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TWICE = 100.0
_MOST_ROWS_NAMED = 24


def straggler_map(own: Floats, ranks: Sequence[int]) -> Figure:
    """Draw how much longer than the fastest rank each rank took in each step, in percent.

    `own` [W, steps] holds seconds without waiting for others, the newest step last; `ranks` [W] numbers.
    """
    fastest = own.min(axis=0)
    excess = 100.0 * (own / np.where(fastest > 0, fastest, 1.0) - 1.0) * (fastest > 0)
    steps = own.shape[1]
    height = min(1.6 + 0.28 * len(own), 8.0)
    figure, (ax,) = panels(1, 1, (9.0, height))
    mappable = ax.imshow(
        excess,
        cmap="Reds",
        vmin=0.0,
        vmax=_TWICE,
        aspect="auto",
        interpolation="nearest",
        extent=(0.5 - steps, 0.5, len(own) - 0.5, -0.5),
    )
    if len(own) <= _MOST_ROWS_NAMED:
        ax.set_yticks(range(len(own)), [str(rank) for rank in ranks])
    else:
        ax.set_yticks([0, len(own) - 1], [str(ranks[0]), str(ranks[-1])])
    count_axis(ax, "x")
    describe(ax, "", "step, counted back from the newest", "rank")
    ax.tick_params(labelsize=TICK_SIZE)
    colour_bar(figure, mappable, ax, "slower than the\nfastest rank (%)")
    return finish(figure, f"Own time of each rank in {steps} steps, without waiting")
