"""Training logs from files: event files, JSON lines, JSON, NumPy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.figures.training.series import Runs, Series, Tags, as_runs
from hjepa_dist_metrics.readers.logs import read_scalars

_NUMPY = (".npz", ".npy")


def load_training_logs(path: str | Path | Sequence[str | Path], tags: Sequence[str] | None = None) -> Runs:
    """Return {run: {tag: Series(steps, values)}} of one or several files or log directories.

    Reads TensorBoard event files, this library's JSON lines, JSON ({tag: values} or a list of records with a
    "step") and NumPy (.npz with an array a tag, .npy of a pickled-free structured array). `tags` keeps some;
    one that no run has is an error. Raises ConfigError for a path without logs and for a damaged file.
    """
    paths = [path] if isinstance(path, (str, Path)) else list(path)
    runs: Runs = {}
    for place in paths:
        for name, series in _read(Path(place)).items():
            runs[_unused(name, runs)] = series
    if not runs:
        raise ConfigError("expected at least one path of training logs, got none")
    return runs if tags is None else _only(runs, tags)


def _read(path: Path) -> Runs:
    suffix = path.suffix.lower()
    if path.is_file() and suffix == ".json":
        return {path.stem: _named(path, _read_json(path))}
    if path.is_file() and suffix in _NUMPY:
        return {path.stem: _named(path, _read_numpy(path))}
    return {
        run: {tag: Series(*np.asarray(points, dtype=np.float64).T) for tag, points in table.items()}
        for run, table in read_scalars(path).items()
    }


def _named(path: Path, columns: Mapping[str, Any]) -> Tags:
    """Return the columns as series; a column "step" or "steps" counts for the others of its length."""
    steps = next((columns[name] for name in ("step", "steps") if name in columns), None)
    rest = {name: values for name, values in columns.items() if name not in ("step", "steps")}
    try:
        return as_runs(
            {n: v if steps is None or len(v) != len(steps) else (steps, v) for n, v in rest.items()}
        )[""]
    except (TypeError, ValueError) as error:  # ConfigError is a ValueError: it gets the path
        raise ConfigError(f"{path}: {error}") from error


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if isinstance(content, list) and all(isinstance(record, dict) for record in content):
        return _columns(content)
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: expected {{tag: [values]}} or a list of records, got {type(content).__name__}"
        )
    return {tag: tuple(v) if _is_pair(v) else v for tag, v in content.items() if isinstance(v, list)}


def _is_pair(value: Any) -> bool:
    return len(value) == 2 and all(isinstance(part, list) for part in value)


def _columns(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return each number's (steps, values) over a list of records; records without a step count up."""
    table: dict[str, tuple[list[float], list[float]]] = {}
    for number, record in enumerate(records):
        for tag, value in record.items():
            if tag != "step" and isinstance(value, (int, float)) and not isinstance(value, bool):
                steps, values = table.setdefault(tag, ([], []))
                steps.append(float(record.get("step", number)))
                values.append(float(value))
    return {tag: (steps, values) for tag, (steps, values) in table.items()}


def _read_numpy(path: Path) -> Mapping[str, Any]:
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            names = content.dtype.names
            return {path.stem: content} if names is None else {name: content[name] for name in names}
        with content:
            return {name: content[name] for name in content.files}
    except (ValueError, OSError) as error:
        raise ConfigError(f"cannot read {path} as NumPy: {error}") from error


def _only(runs: Runs, tags: Sequence[str]) -> Runs:
    there = {tag for have in runs.values() for tag in have}
    for tag in tags:
        if tag not in there:
            raise ConfigError(f"the logs have no tag {tag!r}; they have {', '.join(sorted(there)[:20])}")
    return {run: {tag: have[tag] for tag in tags if tag in have} for run, have in runs.items()}


def _unused(name: str, taken: Runs) -> str:
    number = 2
    unused = name
    while unused in taken:
        unused, number = f"{name}-{number}", number + 1
    return unused
