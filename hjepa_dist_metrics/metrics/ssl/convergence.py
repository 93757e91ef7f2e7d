"""How fast the losses change from one log to the next."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hjepa_dist_metrics.values import Scalar, Value

_LEAST = 1e-12


class Convergence:
    """Return (now - before) / (|before| * steps) for the total loss and each level's."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[int, float]] = {}

    def rates(self, step: int, values: Mapping[str, Value]) -> dict[str, Value]:
        """Return `loss/convergence_rate` and `loss/convergence_rate_h{i}` from the second log on."""
        rates: dict[str, Value] = {}
        for tag, value in values.items():
            level = re.fullmatch(r"loss/(?:total|(h\d+))", tag)
            if level is None or not isinstance(value, Scalar):
                continue
            name = "loss/convergence_rate" + (f"_{level[1]}" if level[1] else "")
            last, before = self._before.get(tag, (step, 0.0))
            if step > last:
                change = value.value - before
                rates[name] = Scalar(change / (max(abs(before), _LEAST) * (step - last)))
            self._before[tag] = (step, value.value)
        return rates

    def state_dict(self) -> dict[str, Any]:
        """Return the newest losses, for a checkpoint."""
        return {tag: list(point) for tag, point in self._before.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self._before = {tag: (int(step), float(value)) for tag, (step, value) in state.items()}
