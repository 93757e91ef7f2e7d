"""Curves of probes over a run, beside its loss."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hjepa_dist_metrics.figures.canvas import PRINT_DPI, FigureSize, Panels, finish, panels
from hjepa_dist_metrics.figures.training.curves import draw_curves, label_steps, use_log_scale
from hjepa_dist_metrics.figures.training.series import as_runs, pick

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ACCURACY = re.compile(r"probe/(.+)_(linear|knn)_top1|val/knn_accuracy")
_LOSSES = ("loss/total", "train/loss", "train_loss", "loss")


def plot_probes(
    logs: Mapping[str, Any],
    *,
    smoothing: float = 0.0,
    axes: Panels | None = None,
    figsize: FigureSize | None = None,
    save_path: str | Path | None = None,
    dpi: int = PRINT_DPI,
) -> Figure:
    """Draw the accuracy of every probe, and the loss beside it where the logs have one.

    Features forget where an accuracy falls while the loss goes on falling.
    """
    runs = as_runs(logs)
    there = sorted({tag for have in runs.values() for tag in have if _ACCURACY.fullmatch(tag)})
    pick(runs, there or ["probe/{name}_linear_top1"], "accuracy of a probe")
    losses = [tag for tag in _LOSSES if any(tag in have for have in runs.values())][:1]
    figure, drawn = panels(1 + len(losses), 2, figsize, axes, height=3.6)
    names = [tag.removeprefix("probe/").removesuffix("_top1").replace("_", " ") for tag in there]
    draw_curves(drawn[0], runs, there, smoothing=smoothing, names=names)
    drawn[0].set_ylim(0, 1.02)
    label_steps(drawn[0], "probes", "accuracy")
    for ax, tag in zip(drawn[1:], losses, strict=True):
        draw_curves(ax, runs, [tag], smoothing=smoothing, by_run=True)
        use_log_scale(ax, runs, [tag])
        label_steps(ax, tag, "loss")
    return finish(figure, f"Probes (smoothing {smoothing:g})" if smoothing else "Probes", save_path, dpi)
