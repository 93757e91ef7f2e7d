"""Lines over training steps, shared by the training figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hjepa_dist_metrics.catalog import Limits
from hjepa_dist_metrics.figures.style import (
    COLOURS,
    HEALTHY,
    LINE_STYLES,
    TICK_SIZE,
    colour,
    describe,
    legend,
    plot_area,
)
from hjepa_dist_metrics.figures.training.series import FEWEST_SMOOTHED, Runs, is_smoothable, smooth

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_curves(
    ax: Axes,
    runs: Runs,
    tags: Sequence[str],
    *,
    smoothing: float = 0.0,
    names: Sequence[str] | None = None,
    by_run: bool = False,
) -> None:
    """Draw each run's tags; with smoothing the raw values stay as a pale line.

    Schedules, momenta and series of fewer than 50 points are never smoothed; those show their points.
    Colours tell tags apart and line styles runs; `by_run` the other way round, for panels of one tag.
    """
    several = len(runs) > 1
    for r, (run, have) in enumerate(runs.items()):
        for t, tag in enumerate(tags):
            if tag not in have:
                continue
            steps, values = have[tag]
            hue, style = (r, t) if by_run else (t, r)
            look: dict[str, Any] = {"color": colour(hue), "ls": LINE_STYLES[style % len(LINE_STYLES)]}
            name = names[t] if names is not None else tag
            label = (f"{run}: {name}" if len(tags) > 1 else run) if several else name
            if len(values) < FEWEST_SMOOTHED:
                look |= {"marker": "o", "ms": 4 if len(values) == 1 else 3}
            if smoothing and is_smoothable(tag, have[tag]):
                ax.plot(steps, values, color=look["color"], alpha=0.25, lw=1)
                values = smooth(values, smoothing, steps)
            ax.plot(steps, values, lw=1.6, label=label, **look)
    plot_area(ax)
    legend(ax)


def draw_limits(ax: Axes, limits: Limits) -> None:
    """Draw the healthy range as a pale band, and its limit and that of collapse as labelled lines."""
    low, high = ax.get_ylim()
    ends = (
        (limits.warn, max(high, limits.warn)) if limits.low_is_bad else (min(low, limits.warn), limits.warn)
    )
    ax.axhspan(*ends, color=HEALTHY, alpha=0.07, lw=0, zorder=0)
    for value, label, hue in ((limits.warn, "healthy", HEALTHY), (limits.bad, "collapse", COLOURS[1])):
        side = "above" if limits.low_is_bad == (label == "healthy") else "below"
        ax.axhline(value, color=hue, ls="--", lw=1, zorder=1)
        text = ax.annotate(
            f"{label}: {side} {value:.3g}",
            (1.0, value),
            xycoords=("axes fraction", "data"),
            xytext=(-3, 2),
            textcoords="offset points",
            ha="right",
            fontsize=TICK_SIZE,
            color=hue,
        )
        text.set_path_effects([_halo()])


def _halo() -> Any:
    from matplotlib.patheffects import withStroke

    return withStroke(linewidth=2.5, foreground="white")


def use_log_scale(ax: Axes, runs: Runs, tags: Sequence[str]) -> None:
    """Take a logarithmic axis where every value is positive and they span more than a factor of 50."""
    values = [v for have in runs.values() for tag in tags if tag in have for v in have[tag].values if v == v]
    if values and min(values) > 0 and max(values) > 50 * min(values):
        ax.set_yscale("log")


def label_steps(ax: Axes, title: str, y: str) -> None:
    """Label a panel over training steps."""
    describe(ax, title, "step", y)
