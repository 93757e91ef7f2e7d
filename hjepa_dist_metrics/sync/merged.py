"""What a sync brings back: merged states, each made when somebody asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from hjepa_dist_metrics.states import State
from hjepa_dist_metrics.sync.plan import Floats, Plan


class MergedStates(Mapping[str, State]):
    """Hold the merged states of a plan by name.

    Row states stay in their groups' blocks until they are asked for: to make hundreds of them costs more than
    to merge them. `originals` are the states that were merged, `blocks` the groups' rows on the host, and
    `others` the remaining states, merged.
    """

    def __init__(
        self,
        plan: Plan,
        originals: Mapping[str, State],
        blocks: Sequence[Floats],
        others: Mapping[str, State],
    ) -> None:
        self._plan, self._originals, self._blocks = plan, originals, blocks
        self._numbers: dict[int, list[list[float]]] = {}
        self._made: dict[str, State] = dict(others)

    def __getitem__(self, name: str) -> State:
        state = self._made.get(name)
        if state is None:
            state = self._made[name] = self._make(name)
        return state

    def __iter__(self) -> Iterator[str]:
        return iter(self._plan.names)

    def __len__(self) -> int:
        return len(self._plan.names)

    def select(self, names: Mapping[str, str]) -> dict[str, State]:
        """Return states under other names, given as new name to name."""
        return {new: self[name] for new, name in names.items()}

    def numbers(self, group: int) -> list[list[float]]:
        """Return a block of single numbers as Python floats, [fields][columns]."""
        if group not in self._numbers:
            self._numbers[group] = self._blocks[group].tolist()
        return self._numbers[group]

    def _make(self, name: str) -> State:
        group, column = self._plan.places[name]
        original: Any = self._originals[name]
        made: State
        if self._plan.groups[group].scalar:
            made = original.reading((self._blocks[group], self.numbers(group), column))
        else:
            made = original.holding(torch.from_numpy(self._blocks[group][:, column : column + original.size]))
        return made
