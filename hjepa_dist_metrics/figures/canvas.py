"""Figures without pyplot: made, shared out into panels, saved and turned into pixels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hjepa_dist_metrics.errors import ConfigError, MissingExtraError
from hjepa_dist_metrics.figures.style import LABEL_SIZE, TICK_SIZE
from hjepa_dist_metrics.values import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure

FigureSize = tuple[float, float]
Panels = Sequence["Axes"]

# Nine inches at 100 dots an inch: what TensorBoard and a README show at full width.
WIDTH, SCREEN_DPI, PRINT_DPI = 9.0, 100, 200
# A run's own figures: TensorBoard's cards and a page's columns show them 345 to 480 pixels wide, and twice as
# wide where one is enlarged.
CARD_WIDTH, CARD_DPI = 4.0, 170
_CARD_TEXT = 0.8
# What is left of a panel of pictures beside its colour bar and margins.
_PICTURE_SHARE = 0.92
FORMATS = (".png", ".pdf", ".svg", ".jpg", ".jpeg")


def new_figure(figsize: FigureSize | None = None, default: FigureSize = (WIDTH, 5.0)) -> Figure:
    """Return an empty figure with its own Agg canvas, unknown to pyplot, so that nothing keeps it alive."""
    # Matplotlib would say that it builds its list of fonts, on a terminal that shows a progress bar.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "figures", "Drawing") from error
    figure = Figure(figsize=figsize or default, dpi=SCREEN_DPI, layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=0.06, h_pad=0.06, wspace=0.03, hspace=0.03)
    FigureCanvasAgg(figure)
    return figure


def panels(
    count: int,
    columns: int,
    figsize: FigureSize | None = None,
    axes: Panels | Axes | None = None,
    *,
    height: float | None = None,
    aspect: float = 0.75,
    width: float = WIDTH,
) -> tuple[Figure, list[Axes]]:
    """Return a figure and `count` panels in rows of `columns`, or the given axes and their figure.

    `height` is the inches of a row; by default it fits pictures of `aspect` = height / width. The figure is
    `width` inches wide.
    Raises ConfigError where other than `count` axes are given.
    """
    if axes is not None:
        given = list(np.asarray(axes, dtype=object).ravel())
        if len(given) != count:
            raise ConfigError(f"this figure draws into {count} axes, got {len(given)}")
        return given[0].figure, given
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    height = height or min(_PICTURE_SHARE * width / columns * aspect + 0.06 * width, 5.0)
    figure = new_figure(figsize, (width, 0.055 * width + height * rows))
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def colour_bar(
    figure: Figure, mappable: ScalarMappable, axes: Any, label: str, location: str = "right"
) -> Colorbar:
    """Put a labelled colour bar beside a panel, or one beside several that share their limits; return it."""
    bar = figure.colorbar(mappable, ax=axes, shrink=0.85, pad=0.02, aspect=30, location=location)
    bar.set_label(label, fontsize=LABEL_SIZE)
    bar.ax.tick_params(labelsize=TICK_SIZE)
    return bar


def card(figure: Figure) -> Figure:
    """Return a figure of `CARD_WIDTH` with its text in the size that fits it."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_fontsize(_CARD_TEXT * float(text.get_fontsize()))
    for ax in figure.axes:
        ax.tick_params(labelsize=_CARD_TEXT * TICK_SIZE)
    return figure


def finish(
    figure: Figure, title: str = "", save_path: str | Path | None = None, dpi: int = PRINT_DPI
) -> Figure:
    """Write the overall title, save where asked, and return the figure."""
    if title:
        figure.suptitle(title, fontsize=12.5)
    if save_path is not None:
        save(figure, save_path, dpi)
    return figure


def save(figure: Figure, save_path: str | Path, dpi: int = PRINT_DPI) -> Path:
    """Write a figure as PNG, PDF, SVG or JPG, by the path's suffix; make its directory.

    Raises ConfigError for another suffix or a dpi outside 50 to 600.
    """
    path = Path(save_path)
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"cannot save a figure as {path.name!r}: use one of {', '.join(FORMATS)}")
    if not 50 <= dpi <= 600:
        raise ConfigError(f"dpi is {dpi!r}; allowed: 50 to 600 (150 to 300 for print)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, facecolor="white")
    return path


def to_image(figure: Figure, dpi: int = SCREEN_DPI) -> Image:
    """Return a figure's pixels, uint8 [H, W, 3], as a value that sinks write."""
    figure.set_dpi(dpi)
    canvas: Any = figure.canvas
    canvas.draw()
    return Image(np.asarray(canvas.buffer_rgba())[..., :3].copy())
