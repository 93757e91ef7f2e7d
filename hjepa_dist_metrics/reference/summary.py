"""What a run says at its end: one table and where to look next."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from hjepa_dist_metrics import LoggingConfig
from hjepa_dist_metrics.reference.trainer import Outcome
from hjepa_dist_metrics.reference.workloads import Row


def common_rows(outcome: Outcome) -> Iterator[Row]:
    """Yield what every workload's table ends with."""
    latest = outcome.latest
    if "gradient/clipping_percentage" in latest:
        yield "clipped steps", "", f"{latest['gradient/clipping_percentage']:.1f} %", ""
    if "performance/samples_per_second" in latest:
        speed = latest["performance/samples_per_second"]
        yield "samples/s, whole job", "", f"{speed:.0f}", ""
    stopped = f"stopped by {outcome.stopped_by}" if outcome.stopped_by else ""
    yield "optimizer steps", "", str(outcome.steps), stopped
    yield "health", "", outcome.health.verdict, ""


def show(outcome: Outcome, logging: LoggingConfig, rows: Iterable[Row]) -> None:
    """Print the table of `rows` and the common ones, what failed, and the command that opens the run."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title=f"Run {outcome.run_name}")
    for column in ("", "start", "end", "baseline"):
        table.add_column(column)
    for row in (*rows, *common_rows(outcome)):
        table.add_row(*row)
    console.print(table)
    findings = (f"{finding.severity}: {finding}" for finding in outcome.health.findings)
    for line in (*findings, *outcome.failures):
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
