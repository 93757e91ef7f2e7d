"""Metrics that are updated at every step: inputs are buffered and flushed into the states together."""

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
from hjepa_dist_metrics.states.base import moved, to_device

Step = TypeVar("Step")
_BUFFER_SIZE = 64


class BufferedMetric(DistributedMetric, Generic[Step]):
    """Buffer checked inputs of `update` until the states are read or 64 steps are buffered.

    Flushing many steps takes as many operations as flushing one: a step costs an append.
    """

    _buffer: list[Step]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Create the metric with an empty buffer."""
        metric = super().__new__(cls, *args, **kwargs)
        metric._buffer = []
        return metric

    @property
    def states(self) -> Mapping[str, State]:  # type: ignore[override]
        """Return the local states by name."""
        self._flush_buffer()
        return self._states

    @abstractmethod
    def _flush(self, steps: Sequence[Step]) -> None:
        """Add steps, in their order, to the states."""

    def _defer(self, step: Step) -> None:
        self._buffer.append(step)
        if len(self._buffer) >= _BUFFER_SIZE:
            self._flush_buffer()

    def _flush_buffer(self) -> None:
        if self._buffer:
            steps, self._buffer = self._buffer, []
            with torch.no_grad():
                self._flush(steps)

    def merge(self, other: DistributedMetric) -> Self:
        """Take in what `other`, a metric of the same kind, has seen; return self."""
        self._flush_buffer()
        if isinstance(other, BufferedMetric):
            other._flush_buffer()
        return super().merge(other)

    def clone(self) -> Self:
        """Return a metric with the same settings and copies of the states."""
        metric = super().clone()  # flushes the buffer
        metric._buffer = []
        return metric

    def reset(self) -> None:
        """Forget everything seen."""
        self._buffer = []
        super().reset()


def keepable(name: str, value: Any) -> float | Tensor:
    """Return a number to buffer: a float, or a float64 0-d copy on its device; errors as `as_number`."""
    if isinstance(value, (float, int)):
        return float(value)
    return as_number(name, value).clone()


def number_row(numbers: Sequence[float | Tensor], device: torch.device) -> Tensor:
    """Return numbers as float64 [n] on a device, without synchronising with it."""
    if not any(isinstance(number, Tensor) for number in numbers):
        return to_device(torch.tensor(numbers, dtype=torch.float64, device="cpu"), device)
    tensors = [
        n if isinstance(n, Tensor) else torch.full((), n, dtype=torch.float64, device=device) for n in numbers
    ]
    return torch.stack([moved(tensor, device) for tensor in tensors])
