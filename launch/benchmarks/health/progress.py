"""A progress bar on the terminal's error stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hjepa_dist_metrics import MissingExtraError

Advance = Callable[[str], None]


@contextmanager
def bar(total: int, done: int) -> Iterator[Advance]:
    """Yield a function to call with the name of each run that is finished."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError as error:
        raise MissingExtraError("rich", "train", "The progress bar of a recording") from error
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task("", total=total, completed=done)

        def advance(name: str) -> None:
            shown.update(task, advance=1, description=name)

        yield advance
