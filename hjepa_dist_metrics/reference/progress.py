"""A progress bar on the main process, nothing elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from hjepa_dist_metrics import MissingExtraError
from hjepa_dist_metrics.reference.trainer import Progress


@contextmanager
def progress_bar(show: bool) -> Iterator[Progress]:
    """Yield a callback that shows steps, time left and the loss on the terminal's error stream."""
    if not show:
        yield lambda step, total, latest: None
        return
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
