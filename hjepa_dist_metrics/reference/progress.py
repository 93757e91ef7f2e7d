"""How far a run is, on the main process: a bar on a terminal, a line for each log elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import IO

from hjepa_dist_metrics import LoggingConfig, MissingExtraError
from hjepa_dist_metrics.reference.trainer import Progress

_VERDICTS = {1.0: "healthy", 0.5: "warning", 0.0: "failing"}


@contextmanager
def show_progress(logging: LoggingConfig, show: bool) -> Iterator[Progress]:
    """Yield a callback that shows step, time left and loss on the error stream; nothing unless `show`."""
    if not show:
        yield lambda step, total, latest: None
    elif sys.stderr.isatty():
        with _bar() as progress:
            yield progress
    else:
        every = logging.cadence.resolve(logging.log_interval or logging.log_frequency).scalars
        yield LogLines(every or 1, sys.stderr)


class LogLines:
    """Print a line for each log of the loss, for files that collect a job's output."""

    def __init__(self, every: int, stream: IO[str]) -> None:
        self._every, self._stream = every, stream
        self._seen: tuple[float | None, ...] = ()
        self._begun: tuple[int, float] | None = None

    def __call__(self, step: int, total: int, latest: Mapping[str, float]) -> None:
        """Print where a log has come since the last call; `step` is the number of finished steps."""
        now = time.monotonic()
        begun = self._begun = self._begun or (step, now)
        seen = tuple(latest.get(tag) for tag in ("loss/total", "performance/total_samples"))
        if seen == self._seen or seen[0] is None:
            return
        self._seen = seen
        left = (now - begun[1]) / max(step - begun[0], 1) * (total - step)
        print(self._line(step, total, latest, left), file=self._stream, flush=True)

    def _line(self, step: int, total: int, latest: Mapping[str, float], left: float) -> str:
        logged = (step - 1) // self._every * self._every
        parts = [f"step {logged}/{total}", f"loss {latest['loss/total']:.4f}"]
        if "performance/samples_per_second" in latest:
            parts.append(f"{latest['performance/samples_per_second']:.0f} samples/s")
        if (score := latest.get("health/score")) is not None:
            parts.append(_VERDICTS.get(score, ""))
        return "  ".join([*parts, f"{timedelta(seconds=round(left))} left"])


@contextmanager
def _bar() -> Iterator[Progress]:
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress as Bar,
            TextColumn,
            TimeRemainingColumn,
        )
    except ImportError as error:
        raise MissingExtraError("rich", "train", "The training command") from error
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]}"),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=None, loss="-")

        def advance(step: int, total: int, latest: Mapping[str, float]) -> None:
            loss = f"{latest['loss/total']:.4f}" if "loss/total" in latest else "-"
            bar.update(task, completed=step, total=total, loss=loss)

        yield advance
