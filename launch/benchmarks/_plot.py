"""Time of one sync over the number of metrics, one panel for each number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hjepa_dist_metrics.errors import MissingExtraError

Cell = dict[str, Any]


def plot(cells: Sequence[Cell], folder: str) -> Path:
    """Draw time over number of metrics, one panel for each number of ranks; write sync.png."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("matplotlib", "bench", "The plot (leave it out with --no-plot)") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    worlds = list(dict.fromkeys(cell["ranks"] for cell in cells))
    figure, panels = pyplot.subplots(
        1, len(worlds), figsize=(5.5 * len(worlds), 4), squeeze=False, sharey=True
    )
    for panel, world in zip(panels[0], worlds, strict=True):
        for method in dict.fromkeys(cell["method"] for cell in cells):
            mine = [c for c in cells if (c["method"], c["ranks"]) == (method, world)]
            line = [(c["metrics"], 1e3 * c["seconds"]) for c in mine]
            width = 2.5 if method == "ours" else 1.2
            panel.plot(*zip(*line, strict=True), marker="o", markersize=3, linewidth=width, label=method)
        panel.set(xscale="log", yscale="log", xlabel="scalar metrics", title=f"{world} gloo ranks")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("one sync, ms (median, slowest rank)")
    panels[0][-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5))
    path = Path(folder) / "sync.png"
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    return path
