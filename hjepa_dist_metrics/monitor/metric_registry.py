"""The run's metrics by name and cadence family; each appears with its first observation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics import DistributedMetric, MetricCollection
from hjepa_dist_metrics.metrics.collection import apply_formulas
from hjepa_dist_metrics.sync import Merged
from hjepa_dist_metrics.values import Value

M = TypeVar("M", bound=DistributedMetric)


class MetricRegistry:
    """Hold the monitor's collection, the family of each metric, and saved states of metrics yet to be made.

    A rank that observes less than the others, or nothing at all, adds nothing to what it lacks; ranks that
    observe the same thing in different shapes are a `DesyncError` at the next sync.
    """

    def __init__(self, collection: MetricCollection) -> None:
        self.collection = collection
        self._families: dict[str, str] = {}
        self._users: set[str] = set()
        self._saved: dict[str, Any] = {}

    def names(self, families: Iterable[str]) -> list[str]:
        """Return the metrics of the given cadence families."""
        wanted = set(families)
        return [name for name in self.collection if self._families[name] in wanted]

    def add(self, name: str, metric: DistributedMetric, family: str) -> None:
        """Add a metric under a cadence family; it continues from a checkpoint that has its states."""
        self.collection.add(name, metric)
        self._families[name] = family
        self._load(name)

    def add_users(self, name: str, metric: DistributedMetric, family: str) -> None:
        """Add a metric that a user made: where it has seen nothing, nothing is written."""
        self.add(name, metric, family)
        self._users.add(name)

    def formulas(self, metrics: Mapping[str, DistributedMetric], merged: Merged) -> dict[str, Value]:
        """Return the values of metrics; those of users have a formula for what they have seen only."""
        seen = {name: metric for name, metric in metrics.items() if not self._saw_nothing(name, merged)}
        return apply_formulas(seen, merged)

    def _saw_nothing(self, name: str, merged: Merged) -> bool:
        return name in self._users and all(state.is_empty for state in merged.get(name, {}).values())

    def ensure(self, name: str, kind: type[M], make: Callable[[], M], family: str) -> M:
        """Return the metric `name`, made at its first use; ConfigError where it is of another kind."""
        if name not in self.collection:
            self.add(name, make(), family)
        metric = self.collection[name]
        if not isinstance(metric, kind):
            raise ConfigError(f"the metric {name!r} must be a {kind.__name__}, got {type(metric).__name__}")
        return metric

    def run(self, update: Callable[[], None]) -> None:
        """Run an update; on many ranks a failure waits for the next sync, where every rank raises it."""
        try:
            update()
        except Exception:
            failed = [metric for metric in self.collection.values() if metric.failure]
            if failed and self.collection.context.world_size > 1:
                return
            for metric in failed:
                metric.failure = None  # raised here and now: no other rank needs to learn of it
            raise

    def start_anew(self, names: Iterable[str]) -> None:
        """Empty the metrics after their log, but for those that count over the whole run."""
        for name in names:
            metric = self.collection[name]
            metric.touched = False
            if not metric.persistent:
                metric.reset()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a collection's saved states; metrics that do not exist yet take theirs when made."""
        self._saved = dict(state["metrics"])
        self.collection.resume_at(state["syncs"])
        for name in self.collection:
            self._load(name)

    def _load(self, name: str) -> None:
        if name in self._saved:
            holder = self.collection.context.rank == 0
            self.collection[name].load_states(self._saved.pop(name), holder=holder)
