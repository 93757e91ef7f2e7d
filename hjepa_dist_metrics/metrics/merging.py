"""Number an owner's syncs and run them: snapshot now, exchange here or on another thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from hjepa_dist_metrics.distributed import ProcessContext, open_channel
from hjepa_dist_metrics.states import State
from hjepa_dist_metrics.sync import SyncReport, Ticket, exchange, snapshot

if TYPE_CHECKING:
    from hjepa_dist_metrics.metrics.base import DistributedMetric

DEFAULT_SYNC_TIMEOUT = 60.0
_SEPARATOR = "."

Merged = dict[str, dict[str, State]]


class Merger:
    """Merge the states of metrics over ranks, each sync numbered."""

    def __init__(self) -> None:
        self.number = 0
        self.report: SyncReport | None = None
        self._last_wait = 0.0

    def job(
        self, metrics: Mapping[str, DistributedMetric], context: ProcessContext, timeout: float
    ) -> Callable[[], Merged] | None:
        """Snapshot the metrics' states and return what remains: the exchange. None outside the group."""
        if not context.is_member:
            return None
        channel = open_channel(context, timeout)
        taken = snapshot(flatten(metrics))
        self.number += 1
        number = self.number
        failures = {name: m.failure for name, m in metrics.items() if m.failure is not None}

        def finish() -> Merged:
            ticket = Ticket(number, failures, self._last_wait)
            merged, self.report = exchange(taken.wait(), channel, ticket)
            self._last_wait = ticket.last_wait
            return unflatten(merged)

        return finish


def flatten(metrics: Mapping[str, DistributedMetric]) -> dict[str, State]:
    """Return every state under "<metric>.<state>"."""
    return {
        f"{owner}{_SEPARATOR}{name}": state
        for owner, metric in metrics.items()
        for name, state in metric.states.items()
    }


def unflatten(states: Mapping[str, State]) -> Merged:
    """Return the states by metric and name."""
    nested: Merged = {}
    for key, state in states.items():
        owner, name = key.rsplit(_SEPARATOR, 1)
        nested.setdefault(owner, {})[name] = state
    return nested
