"""MetricCollection: any number of metrics, one sync."""

from __future__ import annotations

import collections
import itertools
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric, pack_states, unpack_states
from hjepa_dist_metrics.metrics.uneven import UnevenResult
from hjepa_dist_metrics.parallel import ProcessContext
from hjepa_dist_metrics.sync import (
    DEFAULT_SYNC_TIMEOUT,
    Merged,
    Participation,
    SyncHandle,
    SyncReport,
    SyncRequest,
    SyncResult,
    SyncSession,
)
from hjepa_dist_metrics.values import Value

R = TypeVar("R")
_Run = tuple[type[DistributedMetric], dict[str, DistributedMetric]]
Formulas = Callable[[Mapping[str, DistributedMetric], Merged], Any]

# How many collections of a class were made with the same metrics: what tells apart those without a name. Each
# group of ranks counts for itself, and so does each rank that is simulated.
_made: collections.Counter[tuple[object, ...]] = collections.Counter()
_made_by: weakref.WeakKeyDictionary[object, collections.Counter[tuple[object, ...]]] = (
    weakref.WeakKeyDictionary()
)


class MetricCollection(Mapping[str, DistributedMetric]):
    """Compute many metrics with one exchange between ranks.

    `context` says which ranks belong together, `sync_timeout` how many seconds to wait for one that does not
    come. Every rank must hold the same metrics and sync them the same number of times; where they do not,
    every rank raises the same `DesyncError`. Collections with the same metrics, as for training and for
    evaluation, are distinguished by `name`, or by the order in which they were made: where ranks sync them in
    different orders, that is an error too. `prefix` is put before every tag, "val/" for instance.
    """

    def __init__(
        self,
        metrics: Mapping[str, DistributedMetric] | None = None,
        context: ProcessContext | None = None,
        sync_timeout: float = DEFAULT_SYNC_TIMEOUT,
        name: str = "",
        prefix: str = "",
    ) -> None:
        if not sync_timeout > 0:
            raise ConfigError(f"sync_timeout must be a positive number of seconds, got {sync_timeout!r}")
        self._context, self.prefix = context, prefix
        self.sync_timeout = float(sync_timeout)
        self._metrics: dict[str, DistributedMetric] = {}
        self._runs: list[_Run] | None = None
        self._session = SyncSession(name or self._default_name(metrics or {}))
        self._handles: list[SyncHandle[Any]] = []
        self._raised: BaseException | None = None
        for name, metric in (metrics or {}).items():
            self.add(name, metric)

    def _default_name(self, metrics: Iterable[str]) -> str:
        if self._context is not None and not self._context.is_member:
            return ""
        ranks = None if self._context is None else self._context.channel or self._context.group
        made = _made if ranks is None else _made_by.setdefault(ranks, collections.Counter())
        kind = type(self).__qualname__
        key = kind, *sorted(metrics)
        made[key] += 1
        return f"{kind} {made[key]} of these metrics, in the order of their making"

    def add(self, name: str, metric: DistributedMetric) -> None:
        """Add a metric under a new name."""
        if name in self._metrics:
            raise ConfigError(f"there is a metric named {name!r} already")
        if not isinstance(metric, DistributedMetric):
            raise ConfigError(f"metric {name!r} must be a DistributedMetric, got {type(metric).__name__}")
        metric.require_added()
        self._metrics[name] = metric
        self._runs = None

    def remove(self, name: str) -> None:
        """Take a metric out, on every rank alike."""
        del self._metrics[name]
        self._runs = None

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
        return self._session.report

    def compute(self, formulas: Formulas | None = None, names: Sequence[str] | None = None) -> Any:
        """Merge all states over ranks in one sync and return all values by tag: the same on every rank.

        A collective call; local states stay as they are. On a process outside the group it returns {}.
        `names` selects metrics, the same on every rank. `formulas` replaces the metrics' own: it gets the
        metrics and their merged states, and what it returns is the result.
        """
        self.raise_errors()
        if not self.context.is_member:
            return {}
        metrics = self._select(names)
        return self._session.run(self._request(metrics), self._then(metrics, formulas, names))

    def compute_async(
        self, formulas: Formulas | None = None, names: Sequence[str] | None = None
    ) -> SyncHandle[Any]:
        """Take a snapshot and merge it in the background; the handle gives what `compute` would.

        Several may be under way. An error that was not fetched is raised by the next call. `formulas`
        runs on the sync's thread.
        """
        self.raise_errors()
        if not self.context.is_member:
            return SyncHandle(_completed({}))
        metrics = self._select(names)
        return self._submit(self._request(metrics), self._then(metrics, formulas, names))

    def compute_uneven(
        self,
        then: Callable[[UnevenResult], R],
        participation: Participation,
        names: Sequence[str] = (),
        offered: Sequence[str] = (),
        patience: str = "",
    ) -> SyncHandle[R]:
        """Merge in the background with ranks that may hold other metrics, or be at another point of the run.

        This rank asks for `names`, and adds `offered` where another rank asks for them. `then` gets what was
        merged, on the sync's thread; its result is the handle's. `patience` says where this rank waits for
        as long as the others live, "" where it does not.
        """
        self.raise_errors()
        metrics = dict(self._metrics)
        request = self._request({name: metrics[name] for name in names})._replace(
            participation=participation,
            offered={name: metrics[name] for name in offered if name not in names},
            known=tuple(metrics),
            patience=patience,
        )
        return self._submit(request, lambda result: then(UnevenResult(metrics, result)))

    def _then(
        self,
        metrics: Mapping[str, DistributedMetric],
        formulas: Formulas | None,
        names: Sequence[str] | None,
    ) -> Callable[[SyncResult], Any]:
        if formulas is not None:
            return lambda result: formulas(metrics, result.merged)
        if names is not None:
            runs = _runs_of(metrics)
        else:
            runs = self._runs = self._runs or _runs_of(metrics)
        return lambda result: result.session.judged(lambda: self._values(runs, metrics, result.merged))

    def _values(
        self, runs: Sequence[_Run], metrics: Mapping[str, DistributedMetric], merged: Merged
    ) -> dict[str, Value]:
        values = _apply(runs, metrics, merged)
        return {self.prefix + tag: value for tag, value in values.items()} if self.prefix else values

    def _request(self, metrics: Mapping[str, DistributedMetric]) -> SyncRequest:
        return SyncRequest(metrics, self.context, self.sync_timeout)

    def _submit(self, request: SyncRequest, then: Callable[[SyncResult], R]) -> SyncHandle[R]:
        handle = SyncHandle(self._session.submit(request, then))
        self._handles.append(handle)
        return handle

    def raise_errors(self) -> None:
        """Raise the error of a background sync that failed and whose handle was not asked."""
        while self._handles and self._handles[0].done():
            handle = self._handles.pop(0)
            if handle.error is None:
                continue
            self._session.acknowledge()
            if not handle.seen and handle.error is not self._raised:
                self._raised = handle.error
                handle.result()

    def clone(self, prefix: str | None = None) -> MetricCollection:
        """Return a collection of clones of the metrics, with a prefix of its own if one is given."""
        metrics = {name: metric.clone() for name, metric in self._metrics.items()}
        chosen = self.prefix if prefix is None else prefix
        return MetricCollection(metrics, self._context, self.sync_timeout, prefix=chosen)

    def reset(self) -> None:
        """Forget everything seen."""
        for metric in self._metrics.values():
            metric.reset()

    def state_dict(self, participation: Participation | None = None) -> dict[str, Any]:
        """Return what all ranks have seen, merged: save it once.

        A collective call. On a process outside the group it returns {}. With a `participation` the ranks need
        not hold the same metrics.
        """
        if not self.context.is_member:
            return {}
        if participation is None:
            packed = self.compute(lambda _, merged: _pack(merged))
        else:
            packed = self.compute_uneven(
                lambda result: _pack(result.merged), participation, list(self._metrics)
            ).result()
        return {"syncs": self._session.number, "metrics": packed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict` at any world size: the first rank takes it, the others start empty.

        ConfigError, on every rank, where the saved metrics are not those of the collection.
        """
        context = self.context
        if not context.is_member:
            return
        if not isinstance(state, Mapping) or not {"syncs", "metrics"} <= state.keys():
            raise ConfigError(
                f"expected what state_dict() returned, with 'syncs' and 'metrics', got {state!r:.200}"
            )
        saved = state["metrics"]
        own = sorted(name for name, metric in self._metrics.items() if metric.states)
        if sorted(saved) != own:
            raise ConfigError(f"the collection holds the metrics {own}, the saved one {sorted(saved)}")
        for name, packed in saved.items():  # all of them are checked before the first is loaded
            unpack_states(name, self._metrics[name].states, packed)
        for name, packed in saved.items():
            self._metrics[name].load_states(packed, holder=context.rank == 0)
        self.resume_at(state["syncs"])

    def resume_at(self, syncs: int) -> None:
        """Go on counting syncs from a checkpoint's number, the same on every rank."""
        self._session.number = int(syncs)

    def close(self, timeout: float | None = None) -> None:
        """Wait for the background syncs, `sync_timeout` seconds at most; raise what went wrong in them."""
        deadline = time.monotonic() + (self.sync_timeout if timeout is None else timeout)
        while self._handles and self._handles[0].wait(deadline - time.monotonic()):
            self.raise_errors()

    def _select(self, names: Sequence[str] | None) -> Mapping[str, DistributedMetric]:
        """Return metrics as a mapping of its own: the collection may get more while a sync is under way."""
        return dict(self._metrics) if names is None else {name: self._metrics[name] for name in names}


def apply_formulas(metrics: Mapping[str, DistributedMetric], merged: Merged) -> dict[str, Value]:
    """Return every metric's values by tag; ConfigError where two metrics write one tag."""
    return _apply(_runs_of(metrics), metrics, merged)


def _runs_of(metrics: Mapping[str, DistributedMetric]) -> list[_Run]:
    """Return the metrics in order, those of one class that follow each other together."""
    grouped = itertools.groupby(metrics.items(), lambda item: type(item[1]))
    return [(kind, dict(items)) for kind, items in grouped]


def _apply(
    runs: Sequence[_Run], metrics: Mapping[str, DistributedMetric], merged: Merged
) -> dict[str, Value]:
    results: dict[str, Value] = {}
    expected = 0
    for kind, run in runs:
        values = kind.compute_many(run, merged)
        results.update(values)
        expected += len(values)
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
