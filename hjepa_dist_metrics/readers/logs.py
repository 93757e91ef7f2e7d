"""Read what runs have written: TensorBoard event files and JSON lines, a file or a whole log directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.readers.events import ScalarTable, event_pictures, event_scalars, event_settings
from hjepa_dist_metrics.sinks.jsonl import read_jsonl
from hjepa_dist_metrics.values import as_float

_RESERVED = frozenset({"step", "wall_time"})
# The folders that a log directory keeps each kind of file in; they are no part of a run's name.
_KINDS = ("tensorboard", "metrics")


def read_scalars(path: str | Path) -> dict[str, ScalarTable]:
    """Return the scalars by run and tag of an event file, a JSON-lines file, or all of them in a directory.

    A run is named by its place below `path`. Where a run has both kinds, as in a log directory, the event
    files count for the tags that they have. Raises ConfigError for a path that is not there or holds no
    scalars, and for a damaged file.
    """
    root = Path(path)
    if not root.exists():
        raise ConfigError(f"there is no file or directory {root}")
    runs = {name: event_scalars(place) for name, place in _event_runs(root)}
    for name, file in _jsonl_runs(root):
        runs[name] = jsonl_scalars(file) | runs.get(name, {})
    runs = {name: table for name, table in runs.items() if table}
    if not runs:
        raise ConfigError(
            f"{root} holds no scalars: expected TensorBoard's event files or .jsonl files there"
        )
    return runs


def read_settings(path: str | Path) -> dict[str, dict[str, object]]:
    """Return each run's settings, by name; {} for a run that recorded none."""
    root = Path(path)
    settings = {name: event_settings(place) for name, place in _event_runs(root)}
    for name, file in _jsonl_runs(root):
        if not settings.get(name):
            settings[name] = jsonl_settings(file)
    return settings


def read_pictures(path: str | Path) -> dict[str, dict[str, tuple[int, bytes]]]:
    """Return each run's last pictures by tag, (step, PNG file): event files hold them, JSON lines do not."""
    return {name: event_pictures(place) for name, place in _event_runs(Path(path))}


def jsonl_settings(path: str | Path) -> dict[str, object]:
    """Return the settings that a JSON-lines file holds; {} without any."""
    found: dict[str, object] = {}
    for record in _records(path):
        entry = record.get("hparams")
        if isinstance(entry, dict):
            found.update(entry)
    return found


def jsonl_scalars(path: str | Path) -> ScalarTable:
    """Return the numbers of a JSON-lines file; lines that hold no record are skipped with a warning."""
    points: dict[str, dict[int, float]] = {}
    for record in _records(path):
        for tag, value in _numbers(record).items():
            points.setdefault(tag, {})[record["step"]] = value
    return {tag: sorted(values.items()) for tag, values in points.items()}


def _records(path: str | Path) -> list[dict[str, Any]]:
    try:
        return read_jsonl(path)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error}") from error


def _numbers(record: Mapping[str, object]) -> dict[str, float]:
    return {
        tag.lstrip("/"): as_float(value)
        for tag, value in record.items()
        if tag not in _RESERVED and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _event_runs(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (run, directory or file) of every place with event files at or below `root`."""
    if root.is_file():
        if "tfevents" in root.name:
            yield root.resolve().parent.name, root
        return
    for directory in sorted({file.parent for file in root.rglob("*tfevents*")}):
        yield _run_name(root, directory), directory


def _jsonl_runs(root: Path) -> Iterator[tuple[str, Path]]:
    if root.is_file():
        if root.suffix == ".jsonl":
            yield root.stem, root
        return
    for file in sorted(root.rglob("*.jsonl")):
        yield _run_name(root, file.with_suffix("")), file


def _run_name(root: Path, place: Path) -> str:
    parts = place.relative_to(root).parts
    if parts and parts[0] in _KINDS:
        parts = parts[1:]
    return "/".join(parts) or root.resolve().name
