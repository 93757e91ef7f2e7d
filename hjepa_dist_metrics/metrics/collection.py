"""MetricCollection: any number of metrics, one sync."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from hjepa_dist_metrics.distributed import ProcessContext
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric, as_value, pack_states
from hjepa_dist_metrics.metrics.joined import Joined
from hjepa_dist_metrics.metrics.merging import DEFAULT_SYNC_TIMEOUT, Joining, Merger
from hjepa_dist_metrics.metrics.roster import Merged
from hjepa_dist_metrics.sync import Part, SyncHandle, SyncReport
from hjepa_dist_metrics.values import Scalar, Value

R = TypeVar("R")
Formulas = Callable[[Mapping[str, DistributedMetric], Merged], Any]


class MetricCollection(Mapping[str, DistributedMetric]):
    """Compute many metrics with one exchange between ranks.

    `context` says which ranks belong together, `sync_timeout` how many seconds to wait for one that does not
    come. Every rank must hold the same metrics and sync them the same number of times; where they do not,
    every rank raises the same `DesyncError`. Collections with the same metrics, as for training and for
    evaluation, are told apart by `name`: where ranks sync them in different orders, that is an error too.
    """

    def __init__(
        self,
        metrics: Mapping[str, DistributedMetric] | None = None,
        context: ProcessContext | None = None,
        sync_timeout: float = DEFAULT_SYNC_TIMEOUT,
        name: str = "",
    ) -> None:
        if not sync_timeout > 0:
            raise ConfigError(f"sync_timeout must be a positive number of seconds, got {sync_timeout!r}")
        self._context = context
        self.sync_timeout = float(sync_timeout)
        self._metrics: dict[str, DistributedMetric] = {}
        self._all: Mapping[str, DistributedMetric] | None = None
        self._merger = Merger(name)
        self._handles: list[SyncHandle[Any]] = []
        self._raised: BaseException | None = None
        for name, metric in (metrics or {}).items():
            self.add(name, metric)

    def add(self, name: str, metric: DistributedMetric) -> None:
        """Add a metric under a new name."""
        if name in self._metrics:
            raise ConfigError(f"there is a metric named {name!r} already")
        if not isinstance(metric, DistributedMetric):
            raise ConfigError(f"metric {name!r} must be a DistributedMetric, got {type(metric).__name__}")
        metric.require_added()
        self._metrics[name] = metric
        self._all = None

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
        context = self.context
        if not context.is_member:
            return {}
        metrics = self._select(names)
        then = partial(formulas or apply_formulas, metrics)
        return self._merger.merge(metrics, context, self.sync_timeout, then)

    def compute_async(
        self, formulas: Formulas | None = None, names: Sequence[str] | None = None
    ) -> SyncHandle[Any]:
        """Take a snapshot and merge it in the background; the handle gives what `compute` would.

        Several may be under way. An error that nobody has fetched is raised by the next call. `formulas`
        runs on the sync's thread.
        """
        self.raise_errors()
        context = self.context
        if not context.is_member:
            return SyncHandle(_completed({}))
        metrics = self._select(names)
        then = partial(formulas or apply_formulas, metrics)
        future = self._merger.merge_async(metrics, context, self.sync_timeout, then)
        handle: SyncHandle[Any] = SyncHandle(future)
        self._handles.append(handle)
        return handle

    def join(self, then: Callable[[Joined], R], names: Sequence[str], joining: Joining) -> SyncHandle[R]:
        """Merge in the background with ranks that may hold other metrics, or be at another point of the run.

        `then` gets what was merged, on the sync's thread; its result is the handle's.
        """
        self.raise_errors()
        metrics = {name: self._metrics[name] for name in names}
        handle = SyncHandle(self._merger.merge_async(metrics, self.context, self.sync_timeout, then, joining))
        self._handles.append(handle)
        return handle

    def join_now(self, then: Callable[[Joined], R], names: Sequence[str], joining: Joining) -> R:
        """Do the same here and now."""
        self.raise_errors()
        metrics = {name: self._metrics[name] for name in names}
        return self._merger.merge(metrics, self.context, self.sync_timeout, then, joining)

    def raise_errors(self) -> None:
        """Raise the error of a background sync that failed and whose handle was not asked."""
        while self._handles and self._handles[0].done():
            handle = self._handles.pop(0)
            if handle.error is None:
                continue
            self._merger.acknowledge()
            if not handle.seen and handle.error is not self._raised:
                self._raised = handle.error
                handle.result()

    def reset(self) -> None:
        """Forget everything seen."""
        for metric in self._metrics.values():
            metric.reset()

    def state_dict(self, part: Part | None = None) -> dict[str, Any]:
        """Return what all ranks have seen, merged: save it once.

        A collective call. On a process outside the group it returns {}. With a `part` the ranks need not hold
        the same metrics.
        """
        if not self.context.is_member:
            return {}
        if part is None:
            packed = self.compute(lambda _, merged: _pack(merged))
        else:
            joining = Joining(part, self._metrics)
            packed = self.join_now(lambda joined: _pack(joined.merged), list(self._metrics), joining)
        return {"syncs": self._merger.number, "metrics": packed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict` at any world size: the first rank takes it, the others start empty."""
        context = self.context
        if not context.is_member:
            return
        saved = state["metrics"]
        mine = sorted(name for name, metric in self._metrics.items() if metric.states)
        if sorted(saved) != mine:
            raise ConfigError(f"the collection holds the metrics {mine}, the saved one {sorted(saved)}")
        for name, packed in saved.items():
            self._metrics[name].load_states(packed, holder=context.rank == 0)
        self.resume_at(state["syncs"])

    def resume_at(self, syncs: int) -> None:
        """Go on counting syncs from a checkpoint's number, the same on every rank."""
        self._merger.number = int(syncs)

    def close(self, timeout: float | None = None) -> None:
        """Wait for the background syncs, `sync_timeout` seconds at most; raise what went wrong in them."""
        deadline = time.monotonic() + (self.sync_timeout if timeout is None else timeout)
        while self._handles and self._handles[0].wait(deadline - time.monotonic()):
            self.raise_errors()

    def _select(self, names: Sequence[str] | None) -> Mapping[str, DistributedMetric]:
        """Return metrics, all of them as a mapping that stays what it is: `add` leads to another one."""
        if names is not None:
            return {name: self._metrics[name] for name in names}
        if self._all is None:
            self._all = dict(self._metrics)
        return self._all


def apply_formulas(metrics: Mapping[str, DistributedMetric], merged: Merged) -> dict[str, Value]:
    """Return every metric's values by tag; ConfigError where two metrics write one tag."""
    results: dict[str, Value] = {}
    expected = 0
    for kind, run in merged.runs:
        found = kind.compute_many(run, merged)
        pairs = found if isinstance(found, dict) else list(found)
        values: dict[str, Any] = dict(pairs)
        if set(map(type, values.values())) != {Scalar}:
            values = {tag: as_value(value, tag, kind) for tag, value in values.items()}
        results.update(values)
        expected += len(pairs)
        if len(results) != expected:
            raise _two_writers(metrics, merged)
    return results


def _pack(merged: Merged) -> dict[str, Any]:
    return {name: pack_states(states) for name, states in merged.items()}


def _two_writers(metrics: Mapping[str, DistributedMetric], merged: Merged) -> ConfigError:
    writers: dict[str, str] = {}
    for name, metric in metrics.items():
        for tag in metric.compute_from(merged.get(name, {})):
            if tag in writers:
                both = f"metrics {writers[tag]!r} and {name!r}"
                return ConfigError(
                    f"{both} both write {tag!r}: make one of them with another name or tag, as "
                    "Collapse(dim, 'context') or TorchMetric(metric, 'val/accuracy') take it"
                )
            writers[tag] = name
    return ConfigError("two metrics write the same tag")


def _completed(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future
