"""Read what runs have written: TensorBoard event files and JSON lines, a file or a whole log directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.readers.events import event_log
from hjepa_dist_metrics.readers.run_log import RunLog, ScalarTable, as_table
from hjepa_dist_metrics.sinks.jsonl import read_jsonl
from hjepa_dist_metrics.values import as_float

_RESERVED = frozenset({"step", "wall_time"})
# The folders that a log directory keeps each kind of file in; they are no part of a run's name.
_KINDS = ("tensorboard", "metrics")


def read_logs(path: str | Path) -> dict[str, RunLog]:
    """Return the runs of an event file, a JSON-lines file, or all of them in a directory, by name.

    A run is named by its place below `path`. Where a run has both kinds, the event files count for the tags
    that they have; JSON lines are found also where `path` is a run's `tensorboard` folder alone.
    Raises ConfigError for a path that is not there or holds no scalars, and for a damaged file.
    """
    root = Path(path)
    if not root.exists():
        raise ConfigError(f"there is no file or directory {root}")
    events = dict(_event_runs(root))
    runs = {name: event_log(place) for name, place in events.items()}
    lines_of = {name: file for name, place in events.items() if (file := _lines_beside(place)) is not None}
    for name, file in (lines_of | dict(_jsonl_runs(root))).items():
        lines = jsonl_log(file)
        log = runs.setdefault(name, lines)
        log.scalars = lines.scalars | log.scalars
        log.settings = lines.settings or log.settings  # there booleans are no numbers
        log.texts = lines.texts | log.texts
    runs = {name: log for name, log in runs.items() if log.scalars}
    if not runs:
        raise ConfigError(
            f"{root} holds no scalars: expected TensorBoard's event files or .jsonl files there"
        )
    return runs


def read_scalars(path: str | Path) -> dict[str, ScalarTable]:
    """Return the scalars of `read_logs` by run and tag."""
    return {name: log.scalars for name, log in read_logs(path).items()}


def run_places(root: Path) -> dict[str, float]:
    """Return the runs in a log directory by name, with the time at which each was last written to."""
    places = [
        *((name, file) for name, place in _event_runs(root) for file in _event_files(place)),
        *_jsonl_runs(root),
    ]
    times: dict[str, float] = {}
    for name, file in places:
        times[name] = max(times.get(name, 0.0), file.stat().st_mtime)
    return times


def jsonl_log(path: str | Path) -> RunLog:
    """Return what a JSON-lines file holds; lines that hold no record are skipped with a warning."""
    log = RunLog()
    points: dict[str, dict[int, float]] = {}
    for record in _records(path):
        step = record["step"]
        log.add_time(as_float(record.get("wall_time", 0.0)) if _is_number(record.get("wall_time")) else 0.0)
        for tag, value in _numbers(record).items():
            points.setdefault(tag, {})[step] = value
        for tag, entry in record.items():
            if isinstance(entry, dict) and isinstance(entry.get("text"), str):
                log.texts[tag.lstrip("/")] = (step, entry["text"])
        settings = record.get("hparams")
        if isinstance(settings, dict):
            log.settings.update(settings)
    log.scalars = as_table(points)
    return log


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _records(path: str | Path) -> list[dict[str, Any]]:
    try:
        return read_jsonl(path)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error}") from error


def _numbers(record: Mapping[str, object]) -> dict[str, float]:
    return {
        tag.lstrip("/"): as_float(value)  # type: ignore[arg-type]
        for tag, value in record.items()
        if tag not in _RESERVED and _is_number(value)
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


def _lines_beside(place: Path) -> Path | None:
    """Return `metrics/<run>.jsonl` beside the `tensorboard/<run>` that event files lie in, or None."""
    folder = (place if place.is_dir() else place.parent).resolve()
    for parent in folder.parents:
        if parent.name == "tensorboard":
            file = parent.parent / "metrics" / f"{folder.relative_to(parent)}.jsonl"
            return file if file.is_file() else None
    return None


def _run_name(root: Path, place: Path) -> str:
    parts = place.relative_to(root).parts
    if parts and parts[0] in _KINDS:
        parts = parts[1:]
    return "/".join(parts) or root.resolve().name


def _event_files(place: Path) -> Iterator[Path]:
    yield from [place] if place.is_file() else place.glob("*tfevents*")
