"""How a set of states travels: worked out once and kept while the set stays what it is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from hjepa_dist_metrics.states import RowState, State
from hjepa_dist_metrics.sync.schema import Schema

Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RowGroup:
    """Name the row states of one class, those without a shape apart: `scalar`.

    They travel as one block [fields, sum of widths] and merge in one step.
    """

    kind: type[RowState]
    scalar: bool
    names: tuple[str, ...]
    widths: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Return [fields, columns] of the block."""
        return self.kind.fields, sum(self.widths)


@dataclass(frozen=True)
class Plan:
    """Hold the schema of a set of states and their grouping; the same on every rank that has the same set.

    `places` says of each row state in which group it travels and at which column of its block it begins;
    `work` is how many seconds the tasks of the merged states take on one core, `longest_work` those of one
    state at most. Of the `others` the first `leading` have rows that their sums need. A plan is `additive`
    where all its states are rows that merge by adding: `numbers` of them.
    """

    schema: Schema
    groups: tuple[RowGroup, ...]
    others: tuple[str, ...]
    names: tuple[str, ...]
    signatures: tuple[str, ...]
    places: Mapping[str, tuple[int, int]]
    work: float
    longest_work: float
    leading: int
    additive: bool
    numbers: int

    @classmethod
    def of(cls, states: Mapping[str, State], last: Plan | None = None) -> Plan:
        """Return the plan of `states`: `last` where that still fits."""
        names = tuple(states)
        signatures = tuple(state.signature for state in states.values())
        if last is not None and last.names == names and last.signatures == signatures:
            return last
        schema = Schema.of(dict(zip(names, signatures, strict=True)))
        kinds: dict[tuple[type[RowState], bool], list[tuple[str, int]]] = {}
        others = []
        for name, _ in schema.lines:
            state = states[name]
            if isinstance(state, RowState) and state.gathered:
                kinds.setdefault((type(state), not state.shape), []).append((name, state.size))
            else:
                others.append(name)
        groups = tuple(
            RowGroup(kind, scalar, *zip(*members, strict=True)) for (kind, scalar), members in kinds.items()
        )
        places = {
            name: (index, column)
            for index, group in enumerate(groups)
            for name, column in zip(group.names, _starts(group.widths), strict=True)
        }
        leading = [name for name in others if states[name].leads]
        others = [*leading, *(name for name in others if not states[name].leads)]
        work = [states[name].work for name in others]
        return cls(
            schema,
            groups,
            tuple(others),
            names,
            signatures,
            places,
            sum(work),
            max(work, default=0.0),
            len(leading),
            not others and all(group.kind.additive for group in groups),
            sum(group.kind.fields * sum(group.widths) for group in groups),
        )


def _starts(widths: Sequence[int]) -> Iterator[int]:
    return itertools.accumulate(widths[:-1], initial=0)


def cut(flat: Floats, shapes: Sequence[Sequence[int]]) -> list[Floats]:
    """Cut [W, n] into blocks [W, fields, columns] of the given shapes."""
    blocks, start = [], 0
    for fields, columns in shapes:
        end = start + fields * columns
        blocks.append(flat[:, start:end].reshape(len(flat), fields, columns))
        start = end
    return blocks
