"""Which states a set of metrics has, and what a sync of them brought back, by metric and name."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hjepa_dist_metrics.states import State
from hjepa_dist_metrics.sync import Columns, Floats, MergedStates, Plan

if TYPE_CHECKING:
    from hjepa_dist_metrics.metrics.base import DistributedMetric

_SEPARATOR = "."
_held: Callable[[DistributedMetric], Mapping[str, State]] = operator.attrgetter("states")
_kept: Callable[[DistributedMetric], Mapping[str, State]] = operator.attrgetter("_states")


@dataclass(frozen=True)
class Roster:
    """List the states of a set of metrics, with the plan of their sync.

    `states` has each under "<metric>.<state>", `members` each metric's states by those names, and `runs` the
    metrics in order, those of one class that follow each other together. All of it is worked out once and
    kept while the metrics hold the same objects. `live` tells that a metric makes its states when asked.
    """

    held: Sequence[Mapping[str, State]]
    states: Mapping[str, State]
    members: Mapping[str, Mapping[str, str]]
    runs: Sequence[tuple[type[DistributedMetric], tuple[str, ...]]]
    plan: Plan
    live: bool = True
    pickers: dict[tuple[tuple[str, ...], str], tuple[int, Columns] | None] = field(default_factory=dict)

    @classmethod
    def of(cls, metrics: Mapping[str, DistributedMetric], last: Roster | None = None) -> Roster:
        """Return the roster of `metrics`: `last`, of the same metrics, where that still holds."""
        # All in C, without a call for each metric: a mapping that is the same object has not changed.
        held = [*map(_held if last is None or last.live else _kept, metrics.values())]
        if last is not None and held == last.held:
            return last
        named = zip(metrics, held, strict=True)
        states = {f"{owner}{_SEPARATOR}{name}": s for owner, mine in named for name, s in mine.items()}
        plan = Plan.of(states, last.plan if last is not None else None)
        if last is not None and plan is last.plan:
            return replace(last, held=held, states=states)
        keys = iter(states)
        named = zip(metrics, held, strict=True)
        members = {owner: {name: next(keys) for name in mine} for owner, mine in named if mine}
        live = any(kind.live for kind in {type(metric) for metric in metrics.values()})
        return cls(held, states, members, _runs(metrics), plan, live)

    @classmethod
    def of_states(cls, states: Mapping[str, State], metrics: Mapping[str, DistributedMetric]) -> Roster:
        """Return the roster of states by full name, and of those of `metrics` that have one of them."""
        members: dict[str, dict[str, str]] = {}
        for key in sorted(states):
            owner, _, name = key.rpartition(_SEPARATOR)
            members.setdefault(owner, {})[name] = key
        ordered = {key: states[key] for key in sorted(states)}
        return cls(
            [], ordered, members, _runs({n: metrics[n] for n in members if n in metrics}), Plan.of(ordered)
        )

    def only(self, metrics: Mapping[str, DistributedMetric]) -> Roster:
        """Return the roster whose formulas are those of `metrics` alone."""
        return replace(self, runs=_runs(metrics))

    def picker(self, owners: tuple[str, ...], state: str) -> tuple[int, Columns] | None:
        """Return the group in which a state of all `owners` lies, and the columns of its block that hold it.

        None unless all of them are single numbers of one class.
        """
        if (owners, state) not in self.pickers:
            self.pickers[owners, state] = self._picker([self.members.get(o, {}).get(state) for o in owners])
        return self.pickers[owners, state]

    def _picker(self, names: Sequence[str | None]) -> tuple[int, Columns] | None:
        places = [self.plan.places.get(name) if name is not None else None for name in names]
        groups = {place[0] for place in places if place is not None}
        if None in places or len(groups) != 1 or not self.plan.groups[group := groups.pop()].scalar:
            return None
        columns = [place[1] for place in places if place is not None]
        # A slice is a view: as good as free, where picking a hundred columns takes microseconds.
        together = slice(columns[0], columns[0] + len(columns))
        return group, together if columns == list(range(together.start, together.stop)) else columns


def _runs(
    metrics: Mapping[str, DistributedMetric],
) -> list[tuple[type[DistributedMetric], tuple[str, ...]]]:
    return [
        (kind, tuple(owners)) for kind, owners in itertools.groupby(metrics, lambda name: type(metrics[name]))
    ]


class Merged(Mapping[str, Mapping[str, State]]):
    """Hold merged states by metric and name; metrics without states are left out."""

    def __init__(self, roster: Roster, states: MergedStates) -> None:
        self._roster, self._states = roster, states

    def __getitem__(self, owner: str) -> Mapping[str, State]:
        return self._states.select(self._roster.members[owner])

    def __iter__(self) -> Iterator[str]:
        return iter(self._roster.members)

    def __len__(self) -> int:
        return len(self._roster.members)

    @property
    def runs(self) -> Sequence[tuple[type[DistributedMetric], tuple[str, ...]]]:
        """Return the metrics in order, those of one class that follow each other together."""
        return self._roster.runs

    def only(self, metrics: Mapping[str, DistributedMetric]) -> Merged:
        """Return the same states for the formulas of `metrics` alone."""
        return Merged(self._roster.only(metrics), self._states)

    def numbers(self, owners: tuple[str, ...], state: str) -> Floats | None:
        """Return the fields of the state `state` of all `owners`, [fields, owners], without making states.

        None unless all of them are single numbers of one class.
        """
        picked = self._roster.picker(owners, state)
        return None if picked is None else self._states.columns(*picked)
