"""What a run says at its end: one table and where to look next."""

from __future__ import annotations

from collections.abc import Iterator

from hjepa_dist_metrics import LoggingConfig, catalog
from hjepa_dist_metrics.reference.trainer import Outcome

Row = tuple[str, str, str]


def rows(outcome: Outcome, dim: int) -> Iterator[Row]:
    """Yield (quantity, start, end) for the quantities that the run measured; `dim` is the feature width."""
    first, latest = outcome.first, outcome.latest
    for tag in sorted(latest):
        if tag == "loss/total" or (tag.startswith("loss/h") and tag[6:].isdigit()):
            yield tag, _number(first[tag]), _number(latest[tag])
    if "collapse/effective_rank" in latest:
        count = int(latest["collapse/num_samples"])
        best = catalog.best_rank(dim, count)
        limits = catalog.effective_rank_limits(dim, count)
        baseline = f"(at best {best:.0f}, suspicious below {limits.warn:.0f})"
        end = f"{latest['collapse/effective_rank']:.1f} {baseline}"
        yield "effective rank", f"{first['collapse/effective_rank']:.1f}", end
    if "val/knn_accuracy" in latest:
        start, end = (f"{100 * values['val/knn_accuracy']:.1f} %" for values in (first, latest))
        yield "kNN accuracy", start, end
    if "gradient/clipping_percentage" in latest:
        yield "clipped steps", "", f"{latest['gradient/clipping_percentage']:.1f} %"
    if "performance/samples_per_second" in latest:
        speed = latest["performance/samples_per_second"]
        yield "samples per second, whole job", "", f"{speed:.0f}"
    yield "optimizer steps", "", str(outcome.steps)
    yield "alerts", "", "; ".join(outcome.alerts) or "none"


def show(outcome: Outcome, logging: LoggingConfig, dim: int) -> None:
    """Print the table, failures of outputs, and the command that opens the run."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title=f"Run {outcome.run_name}")
    for column in ("", "start", "end"):
        table.add_column(column)
    for row in rows(outcome, dim):
        table.add_row(*row)
    console.print(table)
    for failure in outcome.failures:
        console.print(failure, soft_wrap=True)
    if logging.tensorboard.enabled:
        folder = f"{logging.log_dir}/tensorboard"
        console.print(f"Event files: {folder}/{outcome.run_name}", soft_wrap=True)
        console.print(f"Open them:   tensorboard --logdir {folder}", soft_wrap=True)


def _number(value: float) -> str:
    return f"{value:.4f}"
