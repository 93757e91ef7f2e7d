"""Metrics that are updated at every step: what steps bring waits, and is folded into the states together."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from typing_extensions import Self

from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.metrics.validation import as_number
from hjepa_dist_metrics.states import State
from hjepa_dist_metrics.states.base import to_device

Step = TypeVar("Step")
_MOST_WAITING = 64


class BufferedMetric(DistributedMetric, Generic[Step]):
    """Keep what `update` brings, checked, until the states are asked for or 64 steps wait.

    To fold many steps in takes as many operations as to fold in one: a step costs an append.
    """

    _waiting: list[Step]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Start with nothing that waits."""
        metric = super().__new__(cls, *args, **kwargs)
        metric._waiting = []
        return metric

    @property
    def states(self) -> Mapping[str, State]:  # type: ignore[override]
        """Return the local states by name."""
        self._settle()
        return self._states

    @abstractmethod
    def _flush(self, steps: Sequence[Step]) -> None:
        """Add steps, in their order, to the states."""

    def _defer(self, step: Step) -> None:
        self._waiting.append(step)
        if len(self._waiting) >= _MOST_WAITING:
            self._settle()

    def _settle(self) -> None:
        if self._waiting:
            steps, self._waiting = self._waiting, []
            with torch.no_grad():
                self._flush(steps)

    def merge(self, other: DistributedMetric) -> Self:
        """Take in what `other`, a metric of the same kind, has seen; return self."""
        self._settle()
        if isinstance(other, BufferedMetric):
            other._settle()
        return super().merge(other)

    def clone(self) -> Self:
        """Return a metric with the same settings and copies of the states."""
        metric = super().clone()  # which flushes what waits
        metric._waiting = []
        return metric

    def reset(self) -> None:
        """Forget everything seen."""
        self._waiting = []
        super().reset()


def keepable(name: str, value: Any) -> float | Tensor:
    """Return a number that may wait: a float, or a float64 0-d copy on its device; errors as `as_number`."""
    if isinstance(value, (float, int)):
        return float(value)
    return as_number(name, value).clone()


def number_row(numbers: Sequence[float | Tensor], device: torch.device) -> Tensor:
    """Return numbers as float64 [n] on a device, without waiting for it."""
    if not any(isinstance(number, Tensor) for number in numbers):
        return to_device(torch.tensor(numbers, dtype=torch.float64, device="cpu"), device)
    tensors = [
        n if isinstance(n, Tensor) else torch.full((), n, dtype=torch.float64, device=device) for n in numbers
    ]
    return torch.stack([tensor.to(device, non_blocking=True) for tensor in tensors])
