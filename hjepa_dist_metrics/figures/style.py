"""One look for all figures: colours that colour-blind readers tell apart, text that 900 pixels carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, without its yellow, which is too light for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LEVEL_COLOURS = COLOURS
MASKED, CONTEXT = "#D55E00", "#0072B2"
MUTED = "#595959"
HEALTHY = "#1A6B2D"

SEQUENTIAL = "viridis"
DIVERGING = "PuOr"

TITLE_SIZE, LABEL_SIZE, TICK_SIZE = 11.0, 10.0, 9.0
# Lines of a legend; more of them would cover the panel.
MOST_NAMED = 10
LINE_STYLES = ("-", "--", ":", "-.")


def colour(index: int) -> str:
    """Return the colour of the series number `index`; they repeat after seven."""
    return COLOURS[index % len(COLOURS)]


def describe(ax: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Write a panel's title and its axes' quantities with units, in the suite's sizes."""
    if title:
        ax.set_title(title, fontsize=TITLE_SIZE)
    if x:
        ax.set_xlabel(x, fontsize=LABEL_SIZE)
    if y:
        ax.set_ylabel(y, fontsize=LABEL_SIZE)
    ax.tick_params(labelsize=TICK_SIZE)


def plot_area(ax: Axes) -> None:
    """Give a panel with data axes a light grid and no box."""
    ax.grid(True, color="#DDDDDD", linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def count_axis(ax: Axes, axis: Literal["x", "y"] = "y") -> None:
    """Put ticks of an axis at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    which = ax.yaxis if axis == "y" else ax.xaxis
    which.set_major_locator(MaxNLocator(integer=True, nbins=6))


def picture_area(ax: Axes) -> None:
    """Take ticks and grid off a panel that shows a picture."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def legend(ax: Axes, columns: int = 1, below: bool = False) -> None:
    """Show the legend where the panel has several labelled series: of many, the first and how many more.

    `below` puts it under the panel, where it covers no data.
    """
    handles, labels = ax.get_legend_handles_labels()
    if len(labels) < 2:
        return
    if len(labels) > MOST_NAMED:
        from matplotlib.lines import Line2D

        more = f"and {len(labels) - MOST_NAMED + 1} more"
        handles = [*handles[: MOST_NAMED - 1], Line2D([], [], ls="none")]
        labels = [*labels[: MOST_NAMED - 1], more]
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2)} if below else {}
    ax.legend(handles, labels, fontsize=TICK_SIZE, frameon=False, ncols=columns, **place)


def group_legend(ax: Axes, groups: Sequence[str], kinds: Mapping[str, Mapping[str, Any]]) -> None:
    """Say under the panel what its colours and its markers or lines mean, each once.

    `groups` are coloured in order, `kinds` map a name to the look of its lines (`ls`, `marker`).
    """
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour(i), lw=3, label=name) for i, name in enumerate(groups)]
    shown = kinds if len(kinds) > 1 else {}
    handles += [Line2D([], [], color=MUTED, label=name, **look) for name, look in shown.items()]
    if len(handles) > 1:
        place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2)}
        width: dict[str, Any] = {"columnspacing": 1.2, "handlelength": 1.6}
        ax.legend(handles=handles, fontsize=TICK_SIZE, frameon=False, ncols=3, **place, **width)
