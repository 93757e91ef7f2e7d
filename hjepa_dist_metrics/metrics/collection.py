"""MetricCollection: any number of metrics, one sync."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hjepa_dist_metrics.distributed import ProcessContext
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric, as_value
from hjepa_dist_metrics.metrics.merging import DEFAULT_SYNC_TIMEOUT, Merged, Merger
from hjepa_dist_metrics.sync import SyncHandle, SyncReport, SyncThread
from hjepa_dist_metrics.values import Value

Formulas = Callable[[Mapping[str, DistributedMetric], Merged], Any]
_thread = SyncThread()


class MetricCollection(Mapping[str, DistributedMetric]):
    """Compute many metrics with one exchange between ranks.

    `context` says which ranks belong together, `sync_timeout` how many seconds to wait for one that does not
    come. Every rank must hold the same metrics and sync them the same number of times; where they do not,
    every rank raises the same `DesyncError`.
    """

    def __init__(
        self,
        metrics: Mapping[str, DistributedMetric] | None = None,
        context: ProcessContext | None = None,
        sync_timeout: float = DEFAULT_SYNC_TIMEOUT,
    ) -> None:
        if not sync_timeout > 0:
            raise ConfigError(f"sync_timeout must be a positive number of seconds, got {sync_timeout!r}")
        self._context = context
        self.sync_timeout = float(sync_timeout)
        self._metrics: dict[str, DistributedMetric] = {}
        self._merger = Merger()
        self._handles: list[SyncHandle[Any]] = []
        for name, metric in (metrics or {}).items():
            self.add(name, metric)

    def add(self, name: str, metric: DistributedMetric) -> None:
        """Add a metric under a new name."""
        if name in self._metrics:
            raise ConfigError(f"there is a metric named {name!r} already")
        if not isinstance(metric, DistributedMetric):
            raise ConfigError(f"metric {name!r} must be a DistributedMetric, got {type(metric).__name__}")
        self._metrics[name] = metric

    def __getitem__(self, name: str) -> DistributedMetric:
        return self._metrics[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._metrics)

    def __len__(self) -> int:
        return len(self._metrics)

    @property
    def context(self) -> ProcessContext:
        """Return the ranks that are merged: the given ones, or the job's at the time of asking."""
        return self._context if self._context is not None else ProcessContext.current()

    @property
    def last_sync(self) -> SyncReport | None:
        """Return what the last sync cost."""
        return self._merger.report

    def compute(self, formulas: Formulas | None = None, names: Sequence[str] | None = None) -> Any:
        """Merge all states over ranks in one sync and return all values by tag: the same on every rank.

        A collective call; local states stay as they are. On a process outside the group it returns {}.
        `names` selects metrics, the same on every rank. `formulas` replaces the metrics' own: it gets the
        metrics and their merged states, and what it returns is the result.
        """
        self.raise_errors()
        job = self._job(formulas or apply_formulas, names)
        # Behind syncs that are still under way, so that every rank runs its collectives in the same order.
        return _thread.submit(job).result() if _thread.busy else job()

    def compute_async(
        self, formulas: Formulas | None = None, names: Sequence[str] | None = None
    ) -> SyncHandle[Any]:
        """Take a snapshot and merge it in the background; the handle gives what `compute` would.

        Several may be under way. An error that nobody has fetched is raised by the next call.
        """
        self.raise_errors()
        handle = SyncHandle(_thread.submit(self._job(formulas or apply_formulas, names)))
        self._handles.append(handle)
        return handle

    def raise_errors(self) -> None:
        """Raise the error of a background sync that failed and whose handle was not asked."""
        finished = [handle for handle in self._handles if handle.done()]
        self._handles = [handle for handle in self._handles if not handle.done()]
        for handle in finished:
            if not handle.seen:
                handle.result()

    def reset(self) -> None:
        """Forget everything seen."""
        for metric in self._metrics.values():
            metric.reset()

    def state_dict(self) -> dict[str, Any]:
        """Return what all ranks have seen, merged: save it once. A collective call."""
        self.close()
        merged: Merged = self._job(lambda _, states: states)()
        packed = {
            owner: {name: state.pack() for name, state in states.items()} for owner, states in merged.items()
        }
        return {"syncs": self._merger.number, "metrics": packed}

    def resume_at(self, syncs: int) -> None:
        """Go on counting syncs from a checkpoint's number, the same on every rank."""
        self._merger.number = int(syncs)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict` at any world size: the main rank takes it, the others start empty."""
        saved = state["metrics"]
        if set(saved) != {name for name, metric in self._metrics.items() if metric.states}:
            raise ConfigError(f"the collection holds {sorted(self._metrics)}, the saved one {sorted(saved)}")
        for name, packed in saved.items():
            self._metrics[name].load_states(packed, holder=self.context.rank == 0)
        self.resume_at(state["syncs"])

    def close(self, timeout: float | None = None) -> None:
        """Wait for the background syncs, `sync_timeout` seconds at most; raise what went wrong in them."""
        _thread.drain(self.sync_timeout if timeout is None else timeout)
        self.raise_errors()

    def _job(self, formulas: Formulas, names: Sequence[str] | None = None) -> Callable[[], Any]:
        """Snapshot now, on the caller's thread; return what remains to be done on any."""
        metrics = {name: self._metrics[name] for name in (self._metrics if names is None else names)}
        merge = self._merger.job(metrics, self.context, self.sync_timeout)
        return dict if merge is None else lambda: formulas(metrics, merge())


def apply_formulas(metrics: Mapping[str, DistributedMetric], merged: Merged) -> dict[str, Value]:
    """Return every metric's values by tag; ConfigError where two metrics write one tag."""
    results: dict[str, Value] = {}
    writers: dict[str, str] = {}
    for name, metric in metrics.items():
        for tag, value in metric.compute_from(merged.get(name, {})).items():
            if tag in writers:
                both = f"metrics {writers[tag]!r} and {name!r}"
                raise ConfigError(f"{both} both write {tag!r}: give one of them a name")
            writers[tag] = name
            results[tag] = as_value(value)
    return results
