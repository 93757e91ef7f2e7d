"""`hjepa-metrics watch`: the summary of a run, live, from its log directory, on any machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import IO

from hjepa_dist_metrics.commands.headline import headline_numbers
from hjepa_dist_metrics.commands.report.facts import duration
from hjepa_dist_metrics.commands.runs import Run
from hjepa_dist_metrics.commands.summary import summarize
from hjepa_dist_metrics.commands.table import number
from hjepa_dist_metrics.commands.terminal import say
from hjepa_dist_metrics.commands.verdict import judge
from hjepa_dist_metrics.errors import MetricsError

_CLEAR = "\x1b[2J\x1b[H"
_IN_A_LINE = 4


def watch(
    load: Callable[[], Run],
    seconds: float,
    stream: IO[str] | None = None,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.time,
) -> bool:
    """Show a run until Ctrl-C, and return whether it was healthy then.

    On a terminal the summary is shown anew every so many seconds; elsewhere each step that was logged, and
    each change of the verdict, is a line.
    """
    stream = sys.stdout if stream is None else stream
    run, last = load(), ""
    try:
        while True:
            if stream.isatty():
                stream.write(_CLEAR)
                say("\n".join([*summarize(run)[0], "", _age(run, now())]), stream)
            elif (line := _line(run)) != last:
                say(line, stream)
                last = line
            sleep(seconds)
            try:
                run = load()
            except (MetricsError, OSError) as error:  # a file that is being replaced, a mount that is away
                say(f"not refreshed: {' '.join(str(error).split())}", stream)
    except KeyboardInterrupt:
        return judge(run).health.verdict == "healthy"


def _line(run: Run) -> str:
    numbers = headline_numbers(run)[:_IN_A_LINE]
    shown = ", ".join(f"{found.label} {number(found.last)}" for found in numbers)
    return f"{run.name}, step {run.last_step}: {judge(run).health}; {shown}"


def _age(run: Run, now: float) -> str:
    if run.log.ended != run.log.ended:
        return "Ctrl-C ends this"
    return f"Last written {duration(max(0.0, now - run.log.ended))} ago; Ctrl-C ends this"
