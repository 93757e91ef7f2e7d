"""What a run says at its end: one table and where to look next."""

from __future__ import annotations

import shlex
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
    """Print the table of `rows` and the common ones, what failed, and the commands that show the run."""
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
    for line in next_commands(logging, outcome.run_name):
        console.print(line, soft_wrap=True)


def next_commands(logging: LoggingConfig, run_name: str) -> Iterator[str]:
    """Yield the commands that show the run, as this user can type them; none where it left no files."""
    logs = shlex.quote(str(logging.log_dir))
    if logging.tensorboard.enabled or logging.jsonl.enabled:
        run = f"{logs} --run {shlex.quote(run_name)}"
        yield f"Verdict:    {_command()} summary {run}"
        yield f"Report:     {_command()} report {run}"
    if logging.tensorboard.enabled:
        yield f"Dashboards: {_command()} tensorboard {logs}"


def _command() -> str:
    """Return the command by name, or from the environment that runs this."""
    if shutil.which("hjepa-metrics"):
        return "hjepa-metrics"
    return str(Path(sys.executable).with_name("hjepa-metrics"))
