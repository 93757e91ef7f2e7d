"""Which families of metrics are logged at which step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.settings.cadence import Every

# Metrics of this family are logged by `end_epoch`, not at steps.
EPOCH = "epoch"


class Schedule:
    """Count steps and tell the families that the coming one logs; the same on every rank.

    `step` is the number of the coming optimizer step. Where `total_steps` is known, the last of them logs
    every family, so that a run ends with numbers and figures of what it has trained.
    """

    def __init__(self, every: Mapping[str, Every], first_step: int, total_steps: int | None = None) -> None:
        self._every = dict(every)
        self._last = None if total_steps is None else total_steps - 1
        self.step = first_step
        self._asked: int | None = None
        self._due: tuple[str, ...] = ()

    @property
    def families(self) -> list[str]:
        """Return the names of all families that are logged at steps."""
        return list(self._every)

    @property
    def logged(self) -> list[str]:
        """Return the families that are ever logged."""
        return [family for family, every in self._every.items() if every.steps is not None]

    @property
    def last_step(self) -> int:
        """Return the number of the last finished step; 0 before the first."""
        return max(self.step - 1, 0)

    @property
    def due(self) -> tuple[str, ...]:
        """Return the families that the coming step logs."""
        if self._asked != self.step:
            self._due = tuple(family for family in self._every if self._is_due(family, self.step))
            self._asked = self.step
        return self._due

    def is_due(self, family: str) -> bool:
        """Return whether the coming step logs a family; ConfigError for one that does not exist."""
        self.require_family(family)
        return family in self.due

    def is_due_next(self, family: str) -> bool:
        """Return whether the step after the coming one logs a family."""
        self.require_family(family)
        every = self._every[family]
        if family in self.due:  # and will be logged by then
            every = replace(every, last_step=self.step)
        ends = self.step + 1 == self._last and every.steps is not None
        return ends or every.is_due(self.step + 1)

    def steps_between(self, family: str) -> int | None:
        """Return the steps between two logs of a family, None where it is off."""
        return self._every[family].steps

    def require_family(self, family: str) -> None:
        """Raise ConfigError for a family that is not logged at steps."""
        if family not in self._every:
            raise ConfigError(f"expected a cadence family of {self.families}, got {family!r}")

    def mark_logged(self, families: tuple[str, ...], step: int) -> None:
        """Note that families are logged at a step: at this rank's, or at that of the ranks it follows."""
        for family in families:
            if family in self._every and self._is_due(family, step):
                self._every[family].mark(step)
        self._asked = None

    def advance(self) -> None:
        """Go on to the next step."""
        self.step += 1

    def go_to(self, step: int) -> None:
        """Go on at a step: that of all ranks after they have waited for each other."""
        self.step = step

    def _is_due(self, family: str, step: int) -> bool:
        every = self._every[family]
        ends = step == self._last and every.steps is not None and every.last_step != step
        return ends or every.is_due(step)

    def state_dict(self) -> dict[str, Any]:
        """Return the counters for a checkpoint."""
        cadences = {family: every.state_dict() for family, every in self._every.items()}
        return {"step_number": self.step, "cadences": cadences}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.step = int(state["step_number"])
        for family, saved in state["cadences"].items():
            self._every[family].load_state_dict(saved)
        self._asked = None
