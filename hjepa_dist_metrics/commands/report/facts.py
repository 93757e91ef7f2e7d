"""What a run was: steps and time, settings, environment."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from datetime import datetime

from hjepa_dist_metrics.commands.report.markup import row, table, text
from hjepa_dist_metrics.commands.runs import Run

ENVIRONMENT = "notes/environment"
_ROW = re.compile(r"^\| ([^|]+) \| ([^|]*) \|$", re.MULTILINE)


def header(runs: Sequence[Run]) -> Iterator[str]:
    """Yield a line for each run: steps, date, duration, machine, ranks."""
    for run in runs:
        name = f"{text(run.name)}: " if len(runs) > 1 else ""
        yield f'<p class="facts">{name}{text(", ".join(_facts(run)))}</p>'


def settings(runs: Sequence[Run]) -> Iterator[str]:
    """Yield the table of settings; of several runs those that differ come first, in bold."""
    keys = sorted({key for run in runs for key in run.settings})
    if not keys:
        yield "<p>The log holds no settings.</p>"
        return
    differing = [key for key in keys if len({str(run.settings.get(key, "-")) for run in runs}) > 1]
    ordered = [*differing, *(key for key in keys if key not in differing)]
    rows = (
        row(
            [f"<code>{text(key)}</code>", *(text(run.settings.get(key, "-")) for run in runs)],
            kind="differs" if key in differing else "",
        )
        for key in ordered
    )
    yield table(("setting", *(run.name for run in runs)), rows)


def environment(runs: Sequence[Run]) -> Iterator[str]:
    """Yield the table of each run's environment, as the run has written it down."""
    for run in runs:
        found = environment_of(run)
        if found:
            yield f"<h3>{text(run.name)}</h3>" if len(runs) > 1 else ""
            yield table(("", ""), (row([text(name), text(value)]) for name, value in found.items()))


def environment_of(run: Run) -> dict[str, str]:
    """Return what the run's note on its environment says, or the machine alone where there is no note."""
    _, note = run.log.texts.get(ENVIRONMENT, (0, ""))
    found = {name.strip(): value.strip() for name, value in _ROW.findall(note)}
    found = {name: value for name, value in found.items() if name and set(name) != {"-"}}
    return found or ({"host": run.log.host} if run.log.host else {})


def _facts(run: Run) -> Iterator[str]:
    yield f"{run.last_step + 1} steps"
    if math.isfinite(run.log.began):
        yield datetime.fromtimestamp(run.log.began).astimezone().strftime("%Y-%m-%d %H:%M %Z")
        yield duration(run.log.ended - run.log.began)
    found = environment_of(run)
    if "ranks" in found:
        yield f"{found['ranks']} rank{'s' * (found['ranks'] != '1')}"
    if "host" in found:
        yield f"on {found['host']}"


def duration(seconds: float) -> str:
    """Return a time such as "42 s", "12 min" or "3 h 20 min"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
