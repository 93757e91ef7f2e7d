"""Earlier names of methods, for one more version."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Protocol


class _Renamed(Protocol):
    def add_alias(self, names: Mapping[str, str]) -> None: ...

    def reset_loss_history(self) -> None: ...


class DeprecatedNames:
    """Forward earlier names of `TrainingMonitor`'s methods, with a warning."""

    def also_as(self: _Renamed, names: Mapping[str, str]) -> None:
        """Call `add_alias`."""
        warnings.warn("also_as is called add_alias now", DeprecationWarning, stacklevel=2)
        self.add_alias(names)

    def new_objective(self: _Renamed) -> None:
        """Call `reset_loss_history`."""
        warnings.warn("new_objective is called reset_loss_history now", DeprecationWarning, stacklevel=2)
        self.reset_loss_history()
