"""A report that is made anew while the run goes on: a live page without a server."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hjepa_dist_metrics.commands.report.page import render_report
from hjepa_dist_metrics.commands.runs import Run
from hjepa_dist_metrics.errors import MetricsError


def write_page(runs: Sequence[Run], path: Path, refresh: float | None = None) -> None:
    """Write the report in one move, so that a browser that loads it meanwhile sees a whole page."""
    draft = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        draft.write_text(render_report(runs, refresh), encoding="utf-8")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def keep_fresh(
    load: Callable[[], Sequence[Run]],
    path: Path,
    seconds: float,
    say: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Write the report every so many seconds until Ctrl-C; the last page no longer loads itself.

    What cannot be read for once, such as a file that is being replaced, is said and tried again.
    """
    runs = load()
    try:
        while True:
            write_page(runs, path, refresh=seconds)
            sleep(seconds)
            try:
                runs = load()
            except MetricsError as error:
                say(f"not refreshed: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        write_page(runs, path)
        say(f"stopped; {path} stays as it is now")
