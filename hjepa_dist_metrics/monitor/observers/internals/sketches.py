"""Figures as values that are drawn later."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hjepa_dist_metrics.figures.canvas import to_image
from hjepa_dist_metrics.values import Drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def drawing(sketch: Callable[[], Figure]) -> Drawing:
    """Return the drawing of a picklable function that returns a figure."""
    return Drawing(lambda: to_image(sketch()), lambda: sketch)
