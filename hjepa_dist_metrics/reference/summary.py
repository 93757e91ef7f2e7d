"""What a run says at its end: one table, what was wrong and where to look next."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hjepa_dist_metrics import LoggingConfig
from hjepa_dist_metrics.catalog.headline import pinned_link
from hjepa_dist_metrics.reference import checkpoint
from hjepa_dist_metrics.reference.trainer import Outcome, Trainer
from hjepa_dist_metrics.reference.workloads import Row

_CAPTION = "baseline: the number without learning, at chance, or the limit of the judge"
_COLOURS = {"healthy": "green", "warning": "yellow", "failing": "bold red"}
_SERVER = "http://localhost:6006"


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


def show(outcome: Outcome, logging: LoggingConfig, rows: Iterable[Row]) -> None:
    """Print the table of `rows` and the common ones with the verdict, why, and where to look next."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    verdict = outcome.health.verdict
    table = Table(title=f"Run {outcome.run_name}", caption=_CAPTION, caption_justify="left")
    for column in ("", "start", "end", "baseline"):
        table.add_column(column)
    for row in (*rows, *common_rows(outcome)):
        table.add_row(*row)
    table.add_section()
    colour = _COLOURS[verdict]
    table.add_row("health", "", f"[{colour}]{verdict}[/]", "")
    console.print(table)
    for line in (*reasons(outcome), *outcome.failures, *next_steps(outcome, logging)):
        console.print(line, soft_wrap=True, markup=False)


def reasons(outcome: Outcome) -> Iterator[str]:
    """Yield the findings that last, with evidence and advice, and what began and has ended."""
    lasting = set()
    for finding in outcome.health.findings:
        lasting |= {finding.name, *finding.also}
        yield f"{finding.severity}: {finding}"
        if finding.also:
            yield f"  with it: {', '.join(finding.also)}"
        if finding.advice:
            yield f"  try: {finding.advice}"
    for alert in outcome.alerts:
        if not any(f": {name}: " in alert for name in lasting):
            yield f"ended: {alert}"


def next_steps(outcome: Outcome, logging: LoggingConfig) -> Iterator[str]:
    """Yield where the run's files are and how to look at them; nothing where it was to write none."""
    commands = next_commands(logging, outcome.run_name)
    part = " (incomplete, see above)" if outcome.failures else ""
    if commands:
        yield f"Logs:        {logging.log_dir}, run {outcome.run_name}{part}"
    yield from commands
    if logging.tensorboard.enabled:
        yield f"  then       {pinned_link(_SERVER)}"


def next_commands(logging: LoggingConfig, run_name: str) -> list[str]:
    """Return lines with the commands that show a run, as this user can type them."""
    folder = shlex.quote(str(logging.log_dir))
    run, lines = f"{folder} --run {shlex.quote(run_name)}", []
    if logging.tensorboard.enabled or logging.jsonl.enabled:
        lines = [f"Look:        {_command()} summary {run}", f"Share:       {_command()} report {run}"]
    if logging.tensorboard.enabled:
        lines.append(f"TensorBoard: {_command()} tensorboard {folder}")
    return lines


def _command() -> str:
    """Return the command by name, or from the environment that runs this."""
    if shutil.which("hjepa-metrics"):
        return "hjepa-metrics"
    return str(Path(sys.executable).with_name("hjepa-metrics"))


def stopped_line(trainer: Trainer, arguments: Sequence[str]) -> str:
    """Return the line of a run that was told to stop: how far it came, its logs, how to go on."""
    at = f"stopped at step {trainer.steps_done}; logs at {trainer.logging.log_dir}"
    folder = trainer.training.checkpoint_dir
    saved = checkpoint.newest(checkpoint.folder(folder, trainer.run_name)) if folder else None
    if saved is None:
        why = "none was due yet" if folder else "--output_dir DIR keeps them"
        return f"{at}; no checkpoint to go on with ({why})"
    resume = [] if "--resume" in arguments else ["--resume"]
    command = shlex.join([*_launcher(), *arguments, *resume])
    return f"{at}; go on from {saved.stem} with: {command}"


def _launcher() -> list[str]:
    """Return how this process was started: by Python, or by torchrun with so many processes."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ["python", sys.argv[0]]
    return ["torchrun", "--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"], sys.argv[0]]
