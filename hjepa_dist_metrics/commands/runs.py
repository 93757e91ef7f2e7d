"""The runs that a command looks at: by path, by name, or the newest."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.readers.logs import read_logs, run_places
from hjepa_dist_metrics.readers.run_log import RunLog, ScalarTable

# Where runs are looked for by name, and the newest one where none is named.
PLACES = ("results", "logs", "runs")
_MOST_NAMED = 6


@dataclass(frozen=True)
class Run:
    """Hold one run: scalars, tag -> [(step, value), ...], settings by name, and all else in its log."""

    name: str
    scalars: ScalarTable
    settings: dict[str, object]
    log: RunLog = field(default_factory=RunLog)

    @property
    def last_step(self) -> int:
        """Return the largest step of any tag."""
        return max(points[-1][0] for points in self.scalars.values())

    @property
    def latest(self) -> dict[str, float]:
        """Return the last value of each tag."""
        return {tag: points[-1][1] for tag, points in self.scalars.items()}


def load_runs(path: str | Path) -> list[Run]:
    """Return the runs of a log directory, an event file or a JSON-lines file, by name."""
    return [Run(name, log.scalars, log.settings, log) for name, log in sorted(read_logs(path).items())]


def find_runs(place: str | None) -> list[Run]:
    """Return the runs of a path, the run of a name, or where neither is given the newest run.

    Names and the newest run are looked for below `results`, `logs` and `runs`, and in the current directory.
    Raises ConfigError, with the nearest names, where there is no such path or run.
    """
    if place is not None and Path(place).exists():
        return load_runs(place)
    known = _known_runs()
    if place is None:
        if not known:
            raise ConfigError(f"no runs below {', '.join(PLACES)} or here; name a log directory")
        root, name, _ = max(known, key=lambda run: run[2])
        return [_one(root, name)]
    matching = [run for run in known if run[1] == place]
    if matching:
        root, name, _ = max(matching, key=lambda run: run[2])
        return [_one(root, name)]
    raise ConfigError(
        f"there is no file, directory or run {place!r}{_near(place, [run[1] for run in known])}"
    )


def newest_run(place: str | None) -> Run:
    """Return the run of a path or name that was written to last."""
    return max(find_runs(place), key=lambda run: (run.log.ended == run.log.ended, run.log.ended, run.name))


def load_each(places: Sequence[str]) -> list[Run]:
    """Return the runs of several paths or names, under names that tell them apart."""
    runs: list[Run] = []
    for place in places:
        for run in find_runs(place):
            taken = {other.name for other in runs}
            name = run.name if run.name not in taken else f"{place}:{run.name}"
            runs.append(Run(name, run.scalars, run.settings, run.log))
    return runs


def one_run(place: str | None, name: str | None) -> Run:
    """Return the run called `name`, or the only one; ConfigError that lists them otherwise."""
    runs = find_runs(place)
    chosen = [run for run in runs if run.name == name] if name is not None else runs
    if len(chosen) != 1:
        listed = ", ".join(run.name for run in runs)
        what = f"no run {name!r}" if name is not None else f"{len(runs)} runs"
        raise ConfigError(f"{place} holds {what}; name one with --run: {listed}")
    return chosen[0]


def _known_runs() -> list[tuple[Path, str, float]]:
    """Return (log directory, run, time of the last write) of the runs in the usual places."""
    return [
        (root, name, time)
        for root in dict.fromkeys(_log_directories())
        for name, time in run_places(root).items()
    ]


def _log_directories() -> Iterator[Path]:
    """Yield the directories that hold `tensorboard` or `metrics`, at most three levels deep."""
    roots = [Path(name) for name in PLACES if Path(name).is_dir()]
    for root in (*roots, Path()):
        depths = ("", "*/", "*/*/", "*/*/*/") if root in roots else ("",)
        for kind in ("tensorboard", "metrics"):
            for depth in depths:
                yield from (folder.parent for folder in root.glob(f"{depth}{kind}") if folder.is_dir())


def _one(root: Path, name: str) -> Run:
    (run,) = [run for run in load_runs(root) if run.name == name]
    return run


def _near(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or sorted(set(names))[:_MOST_NAMED]
    return f"; runs here: {', '.join(near)}" if near else ""
