"""What a run says at its end: one table and where to look next."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from hjepa_dist_metrics import LoggingConfig, catalog
from hjepa_dist_metrics.reference.trainer import Outcome

Row = tuple[str, str, str, str]


def rows(outcome: Outcome, dim: int) -> Iterator[Row]:
    """Yield (quantity, start, end, baseline) for what the run measured; `dim` is the feature width."""
    first, latest = outcome.first, outcome.latest
    for tag in sorted(latest):
        if tag == "loss/total" or (tag.startswith("loss/h") and tag[6:].isdigit()):
            yield tag, f"{first[tag]:.4f}", f"{latest[tag]:.4f}", ""
    if "collapse/effective_rank" in latest:
        count = int(latest["collapse/num_samples"])
        limits = catalog.effective_rank_limits(dim, count)
        start, end = (f"{values['collapse/effective_rank']:.1f}" for values in (first, latest))
        yield "effective rank", start, end, f"{limits.warn:.0f} of {catalog.best_rank(dim, count):.0f}"
    if "val/knn_accuracy" in latest:
        start, end = (f"{100 * values['val/knn_accuracy']:.1f} %" for values in (first, latest))
        yield "kNN accuracy", start, end, f"{start} untrained"
    if "gradient/clipping_percentage" in latest:
        yield "clipped steps", "", f"{latest['gradient/clipping_percentage']:.1f} %", ""
    if "performance/samples_per_second" in latest:
        speed = latest["performance/samples_per_second"]
        yield "samples/s, whole job", "", f"{speed:.0f}", ""
    yield "optimizer steps", "", str(outcome.steps), ""
    yield "alerts", "", str(len(outcome.alerts)) if outcome.alerts else "none", ""


def show(outcome: Outcome, logging: LoggingConfig, dim: int) -> None:
    """Print the table, failures of outputs, and the command that opens the run."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title=f"Run {outcome.run_name}")
    for column in ("", "start", "end", "baseline"):
        table.add_column(column)
    for row in rows(outcome, dim):
        table.add_row(*row)
    console.print(table)
    for line in (*outcome.alerts, *outcome.failures):
        console.print(line, soft_wrap=True)
    if logging.tensorboard.enabled:
        folder = f"{logging.log_dir}/tensorboard"
        console.print(f"Event files: {folder}/{outcome.run_name}", soft_wrap=True)
        console.print(f"Open them:   {_tensorboard()} --logdir {folder}", soft_wrap=True)


def _tensorboard() -> str:
    """Return the command as this user can type it: by name, or from the environment that runs this."""
    if shutil.which("tensorboard"):
        return "tensorboard"
    return str(Path(sys.executable).with_name("tensorboard"))
