"""Traces: what the monitor of a run published, log by log, and the facts of the run, in a compressed file."""

from __future__ import annotations

import json
import lzma
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hjepa_dist_metrics import ConfigError

FOLDER = Path(__file__).resolve().parents[3] / "tests/health/traces"
SUFFIX = ".json.xz"
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

Numbers = dict[str, float]


@dataclass(frozen=True)
class Trace:
    """Hold a recorded run.

    `run`: "recipe", "seed", "strength", "ranks", "failure" (None for a healthy run), "planted_at" (a step),
    "expect" (the finding), "accept" (findings that are right as well), "held_out", "steps", "batch_size",
    "log_every", "measure" (the fact that shows the failure; None: it is there at once).
    `logs`: (step, numbers by tag) in the order in which they were published.
    `facts`: (step, numbers by name), measured beside the monitor.
    """

    name: str
    run: dict[str, Any]
    logs: list[tuple[int, Numbers]]
    facts: list[tuple[int, Numbers]] = field(default_factory=list)

    def save(self, folder: Path = FOLDER) -> Path:
        """Write the trace, numbers with six digits."""
        content = {"run": self.run, "series": _columns(self.logs), "facts": _columns(self.facts)}
        text = json.dumps(content, allow_nan=False, separators=(",", ":"))
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}{SUFFIX}"
        path.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
        return path


def load_trace(path: Path) -> Trace:
    """Read a trace; ConfigError for a file that is none."""
    try:
        content = json.loads(lzma.decompress(path.read_bytes()))
        logs, facts = _rows(content["series"]), _rows(content["facts"])
        return Trace(path.name.removesuffix(SUFFIX), content["run"], logs, facts)
    except (lzma.LZMAError, ValueError, KeyError, OSError) as error:
        raise ConfigError(f"{path} is no trace of a run: {error!r}; record it anew with --record") from error


def load_traces(held_out: bool = False, folder: Path = FOLDER) -> list[Trace]:
    """Return the recorded runs, by name: those for tuning, or those that are held out."""
    traces = [load_trace(path) for path in sorted(folder.glob(f"*{SUFFIX}"))]
    return [trace for trace in traces if trace.run["held_out"] == held_out]


def _columns(rows: Iterable[tuple[int, Mapping[str, float]]]) -> dict[str, Any]:
    """Return rows as columns, which compress better: steps, and for each tag the rows and values it has."""
    steps: list[int] = []
    columns: dict[str, list[Any]] = {}
    for step, numbers in rows:
        for tag, value in numbers.items():
            column = columns.setdefault(tag, [])
            column += [None] * (len(steps) - len(column)) + [_encode(value)]
        steps.append(step)
    return {"steps": steps, "columns": columns}


def _rows(content: Mapping[str, Any]) -> list[tuple[int, Numbers]]:
    rows: list[tuple[int, Numbers]] = [(step, {}) for step in content["steps"]]
    for tag, column in content["columns"].items():
        for (_, numbers), value in zip(rows, column, strict=False):  # a column ends with its last value
            if value is not None:
                numbers[tag] = _WORDS[value] if isinstance(value, str) else float(value)
    return rows


def _encode(value: float) -> float | int | str:
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    rounded = float(f"{value:.6g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
