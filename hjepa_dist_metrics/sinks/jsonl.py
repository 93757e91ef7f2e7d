"""One JSON object a step, one line each: readable by anything, also while the run is on."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hjepa_dist_metrics.sinks.base import ForkGuard, HParam
from hjepa_dist_metrics.sinks.text import encodable_hparams, encodable_values
from hjepa_dist_metrics.values import Histogram, Scalar, Text, Value

logger = logging.getLogger("hjepa_dist_metrics.sinks")

_OWN_KEYS = frozenset({"step", "wall_time", "hparams"})
_MOST_NAMED = 5
_LARGEST_STEP = 2**63 - 1
_NONFINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class JsonlSink:
    """Append `{"step": 3, "wall_time": 1.7e9, "loss/total": 0.5, ...}` to a file.

    Strict JSON. A scalar is a number, or one of the strings "NaN", "Infinity", "-Infinity"; text is
    `{"text": ...}`; a histogram is `{"histogram": {"count", "min", "max", "mean", "std", "nonfinite"}}`.
    Pictures and embeddings are left out. A tag `step`, `wall_time` or `hparams` is written as `/step`, and so
    on: the record has a key of that name. The run's settings are a line of their own,
    `{"hparams": {...}}`. Each line goes out in one unbuffered write, so a reader and a
    kill see whole lines. On opening, lines at `start_step` and later, and broken ones, are removed: a resumed
    run writes those steps again. A file that was removed is made again, which is said.
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
        encoded = ((tag, _encode(value)) for tag, value in encodable_values(values).items())
        entries = {_key(tag): entry for tag, entry in encoded if entry is not None}
        if entries:
            now = time.time() if wall_time is None else wall_time
            self._append({"step": int(step), "wall_time": now, **entries})

    def write_hparams(self, hparams: Mapping[str, HParam], metrics: Sequence[str] = ()) -> None:
        """Append the settings as one line at the run's first step."""
        if hparams and not self._guard.in_child:
            clean = encodable_hparams(hparams)
            settings = {key: _number(v) if isinstance(v, float) else v for key, v in clean.items()}
            self._append({"step": self._start_step, "wall_time": time.time(), "hparams": settings})

    def write_status(self, success: bool) -> None:
        """Do nothing: the last line tells when the run ended."""

    def _append(self, line: Mapping[str, object]) -> None:
        if not self.path.exists():  # writes into an unlinked file succeed and are lost
            self._file.close()
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
            logger.warning("%s was removed while the run was writing to it; it goes on in a new file", self)
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

    A record is an object with a whole number "step". A last line cut short by a kill is left out; what else
    is no record is left out too, and its lines are named in a warning.
    """
    records, broken = [], []
    lines = Path(path).read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        record = parse_record(line)
        if record is not None:
            records.append({key: _decode(value) for key, value in record.items()})
        elif line.strip() and number < len(lines):  # without a newline after it the write did not end
            broken.append(number)
    if broken:
        logger.warning("%s: %s skipped", path, _named(broken))
    return records


def parse_record(line: bytes) -> dict[str, Any] | None:
    """Return the record of a line, None where it holds none: broken, no object, or without a step."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # also JSONDecodeError and UnicodeDecodeError
        return None
    step = record.get("step") if isinstance(record, dict) else None
    if not isinstance(step, (int, float)) or isinstance(step, bool) or not abs(step) <= _LARGEST_STEP:
        return None
    return {**record, "step": int(step)} if step == int(step) else None


def _key(tag: str) -> str:
    """Return a tag as a key of a record; one that the record needs itself gets a slash before it."""
    return f"/{tag}" if tag in _OWN_KEYS else tag


def _named(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:_MOST_NAMED])) + (", ..." if len(numbers) > _MOST_NAMED else "")
    return f"line {shown} is broken and" if len(numbers) == 1 else f"lines {shown} are broken and"


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
    """Keep the whole records before `start_step`; the file is replaced in one move."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.split(b"\n")[:-1]  # what follows the last newline was cut short
    records = [(line, parse_record(line)) for line in whole]
    broken = sum(record is None and line.strip() != b"" for line, record in records)
    if broken:
        logger.warning("%s: %d broken line(s) removed", path, broken)
    kept = b"".join(line + b"\n" for line, record in records if record and record["step"] < start_step)
    if kept == data:
        return
    draft = path.with_name(path.name + ".tmp")
    draft.write_bytes(kept)
    os.replace(draft, path)
