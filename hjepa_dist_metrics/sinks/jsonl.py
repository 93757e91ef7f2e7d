"""One JSON object a step, one line each: readable by anything, also while the run is on."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hjepa_dist_metrics.sinks.base import ForkGuard, HParam
from hjepa_dist_metrics.values import Histogram, Scalar, Text, Value

_NONFINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class JsonlSink:
    """Append `{"step": 3, "wall_time": 1.7e9, "loss/total": 0.5, ...}` to a file.

    Strict JSON. A scalar is a number, or one of the strings "NaN", "Infinity", "-Infinity"; text is
    `{"text": ...}`; a histogram is `{"histogram": {"count", "min", "max", "mean", "std", "nonfinite"}}`.
    Pictures and embeddings are left out. The run's settings are a line of their own,
    `{"hparams": {...}}`. Each line goes out in one unbuffered write, so a reader and a
    kill see whole lines. On opening, lines at `start_step` and later are removed: a resumed run writes
    those steps again.
    """

    local = True

    def __init__(self, path: str | Path, start_step: int = 0) -> None:
        self.path = Path(path)
        self._start_step = start_step
        self._guard = ForkGuard()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _truncate(self.path, start_step)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - open for the run's whole life

    def __str__(self) -> str:
        return f"JSON lines ({self.path})"

    def write(self, step: int, values: Mapping[str, Value], wall_time: float | None = None) -> None:
        """Append one line; nothing where none of the values has a JSON form."""
        if self._guard.in_child:
            return
        entries = {tag: _encode(value) for tag, value in values.items()}
        entries = {tag: entry for tag, entry in entries.items() if entry is not None}
        if entries:
            now = time.time() if wall_time is None else wall_time
            self._append({"step": int(step), "wall_time": now, **entries})

    def write_hparams(self, hparams: Mapping[str, HParam], metrics: Sequence[str] = ()) -> None:
        """Append the settings as one line at the run's first step."""
        if hparams and not self._guard.in_child:
            settings = {key: _number(v) if isinstance(v, float) else v for key, v in hparams.items()}
            self._append({"step": self._start_step, "wall_time": time.time(), "hparams": settings})

    def write_status(self, success: bool) -> None:
        """Do nothing: the last line tells when the run ended."""

    def _append(self, line: Mapping[str, object]) -> None:
        if not self.path.exists():  # writes into an unlinked file succeed and are lost
            raise FileNotFoundError(f"{self.path} was removed while the run was writing to it")
        data = memoryview(json.dumps(line, allow_nan=False, ensure_ascii=False).encode() + b"\n")
        while data:  # a raw write may take a part only
            data = data[self._file.write(data) :]

    def flush(self) -> None:
        """Do nothing: every line is handed to the operating system as it is written."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Return the records of a JSON-lines file, nonfinite numbers restored as floats.

    A last line cut short by a kill is left out; a broken line before it raises ValueError with its number.
    """
    lines = Path(path).read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
            if number == len(lines):  # no newline after it: the write did not end
                break
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
        records.append({key: _decode(value) for key, value in record.items()})
    return records


def _encode(value: Value) -> object | None:
    if isinstance(value, Scalar):
        return _number(value.value)
    if isinstance(value, Text):
        return {"text": value.markdown}
    if isinstance(value, Histogram):
        return {"histogram": _summary(value)}
    return None


def _summary(histogram: Histogram) -> dict[str, float | int | str | None]:
    count = histogram.count
    if not count:
        return {"count": 0, "nonfinite": int(histogram.nonfinite)}
    mean = histogram.total / count
    variance = max(histogram.total_squares / count - mean * mean, 0.0)
    numbers = {"min": histogram.minimum, "max": histogram.maximum, "mean": mean, "std": math.sqrt(variance)}
    return {
        "count": count,
        "nonfinite": int(histogram.nonfinite),
        **{name: _number(number) for name, number in numbers.items()},
    }


def _number(value: float) -> float | str:
    value = float(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _decode(value: Any) -> Any:
    return _NONFINITE.get(value, value) if isinstance(value, str) else value


def _truncate(path: Path, start_step: int) -> None:
    """Keep the whole lines before `start_step`; the file is replaced in one move."""
    if not path.exists():
        return
    data = path.read_bytes()
    kept = b"".join(line for line in data.splitlines(keepends=True) if _is_before(line, start_step))
    if kept == data:
        return
    draft = path.with_name(path.name + ".tmp")
    draft.write_bytes(kept)
    os.replace(draft, path)


def _is_before(line: bytes, start_step: int) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        return int(json.loads(line)["step"]) < start_step
    except (ValueError, KeyError, TypeError):
        return True  # not ours to judge: reading reports it with its line number
