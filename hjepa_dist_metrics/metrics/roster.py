"""Which states a set of metrics has, and what a sync of them brought back, by metric and name."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from hjepa_dist_metrics.states import LiveBlock, State
from hjepa_dist_metrics.sync import MergedStates, Plan, RowGroup

if TYPE_CHECKING:
    from hjepa_dist_metrics.metrics.base import DistributedMetric

_SEPARATOR = "."
_FEWEST_TOGETHER = 8  # states of one class for which a block of their own is worth while
_held: Callable[[DistributedMetric], Mapping[str, State]] = operator.attrgetter("states")
_kept: Callable[[DistributedMetric], Mapping[str, State]] = operator.attrgetter("_states")


class Run(dict[str, "DistributedMetric"]):
    """Hold metrics of one class that follow each other, by name; `notes` is for what is found out once."""

    def __init__(self, metrics: Mapping[str, DistributedMetric]) -> None:
        super().__init__(metrics)
        self.notes: dict[str, Any] = {}


def notes_of(metrics: Mapping[str, DistributedMetric]) -> dict[str, Any]:
    """Return the notes of a run; of other metrics nothing is remembered."""
    return metrics.notes if isinstance(metrics, Run) else {}


@dataclass(frozen=True)
class Roster:
    """List the states of a set of metrics, with the plan of their sync.

    `states` has each under "<metric>.<state>", `members` each metric's states by those names, and `runs` the
    metrics in order, those of one class that follow each other together. All of it is worked out once and
    kept while the metrics hold the same objects. `live` tells that a metric makes its states when asked;
    `blocks` are those in which the numbers of a group lie, by the group's place in the plan.
    """

    held: Sequence[Mapping[str, State]]
    states: Mapping[str, State]
    members: Mapping[str, Mapping[str, str]]
    runs: Sequence[tuple[type[DistributedMetric], Run]]
    plan: Plan
    live: bool = True
    blocks: dict[int, LiveBlock] = field(default_factory=dict)

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
            return replace(last, held=held, states=states, blocks={})
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

    def lay_together(self) -> None:
        """Let the numbers of many states of one class lie side by side, for the next sync to take at once.

        Those of another roster's block come here: a state lies where it was last synced twice in a row.
        """
        for index, group in enumerate(self.plan.groups):
            known = self.blocks.get(index)
            # A subclass says for itself whether its states may: it may write to their tensors.
            joins = vars(group.kind).get("joins", False) and len(group.names) >= _FEWEST_TOGETHER
            if joins and not (known and known.whole):
                self._lay_group(index, group)

    def _lay_group(self, index: int, group: RowGroup) -> None:
        members: list[Any] = [self.states[name] for name in group.names]
        data = [state.data for state in members]
        if not all(tensor.is_cpu for tensor in data):
            return
        block = self.blocks[index] = LiveBlock(torch.cat(data, dim=1).numpy())
        for column, state in enumerate(members):
            state.live_in(block, column)

    def place(self, run: Mapping[str, DistributedMetric], state: str) -> tuple[int, list[int]] | None:
        """Return the group in which a state of all metrics lies, and each metric's column of its block.

        None unless all of them are single numbers of one class.
        """
        notes = notes_of(run)
        key = f"place of {state}"
        if key not in notes:
            notes[key] = self._place([self.members.get(owner, {}).get(state) for owner in run])
        found: tuple[int, list[int]] | None = notes[key]
        return found

    def _place(self, names: Sequence[str | None]) -> tuple[int, list[int]] | None:
        places = [self.plan.places.get(name) if name is not None else None for name in names]
        groups = {place[0] for place in places if place is not None}
        if None in places or len(groups) != 1 or not self.plan.groups[group := groups.pop()].scalar:
            return None
        return group, [place[1] for place in places if place is not None]


def _runs(metrics: Mapping[str, DistributedMetric]) -> list[tuple[type[DistributedMetric], Run]]:
    grouped = itertools.groupby(metrics, lambda name: type(metrics[name]))
    return [(kind, Run({name: metrics[name] for name in names})) for kind, names in grouped]


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
    def runs(self) -> Sequence[tuple[type[DistributedMetric], Run]]:
        """Return the metrics in order, those of one class that follow each other together."""
        return self._roster.runs

    def only(self, metrics: Mapping[str, DistributedMetric]) -> Merged:
        """Return the same states for the formulas of `metrics` alone."""
        return Merged(self._roster.only(metrics), self._states)

    def numbers(
        self, metrics: Mapping[str, DistributedMetric], state: str
    ) -> tuple[Sequence[Sequence[float]], Sequence[int]] | None:
        """Return a block's fields as lists, and each metric's place in them, without making states.

        None unless the state `state` of all `metrics` is a single number of one class.
        """
        found = self._roster.place(metrics, state)
        return None if found is None else (self._states.numbers(found[0]), found[1])
