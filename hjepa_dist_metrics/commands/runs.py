"""The runs that a command looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.readers.events import ScalarTable
from hjepa_dist_metrics.readers.logs import read_scalars, read_settings


@dataclass(frozen=True)
class Run:
    """Hold one run: its scalars, tag -> [(step, value), ...], and its settings by name."""

    name: str
    scalars: ScalarTable
    settings: dict[str, object]

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
    settings = read_settings(path) if Path(path).exists() else {}
    return [Run(name, table, settings.get(name, {})) for name, table in sorted(read_scalars(path).items())]


def load_each(paths: Sequence[str]) -> list[Run]:
    """Return the runs of several paths, under names that tell them apart."""
    runs: list[Run] = []
    for path in paths:
        for run in load_runs(path):
            taken = {other.name for other in runs}
            name = run.name if run.name not in taken else f"{path}:{run.name}"
            runs.append(Run(name, run.scalars, run.settings))
    return runs


def one_run(path: str, name: str | None) -> Run:
    """Return the run called `name`, or the only one; ConfigError that lists them otherwise."""
    runs = load_runs(path)
    chosen = [run for run in runs if run.name == name] if name is not None else runs
    if len(chosen) != 1:
        listed = ", ".join(run.name for run in runs)
        what = f"no run {name!r}" if name is not None else f"{len(runs)} runs"
        raise ConfigError(f"{path} holds {what}; name one with --run: {listed}")
    return chosen[0]
