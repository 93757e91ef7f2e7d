"""The phases of a Lightning step, one after the other, told by its hooks."""

from __future__ import annotations

from contextlib import AbstractContextManager

from hjepa_dist_metrics.monitor import TrainingMonitor


class Phases:
    """Be in one phase of the monitor's at a time, entered by one hook and left by the next."""

    def __init__(self, monitor: TrainingMonitor) -> None:
        self._monitor = monitor
        self._current: AbstractContextManager[None] | None = None
        self._pause: AbstractContextManager[None] | None = None

    def loading(self) -> None:
        """Wait for data from now on."""
        self._enter(self._monitor.data_loading())

    def forward(self) -> None:
        """Run the forward pass from now on."""
        self._enter(self._monitor.forward())

    def backward(self) -> None:
        """Run the backward pass from now on."""
        self._enter(self._monitor.backward())

    def optimizer(self) -> None:
        """Run the optimizer's step from now on."""
        self._enter(self._monitor.optimizer_step())

    def leave(self) -> None:
        """End the phase."""
        current, self._current = self._current, None
        if current is not None:
            current.__exit__(None, None, None)

    def pause(self) -> None:
        """Keep what follows, a validation, out of the training's time; within the phase."""
        self._pause = self._monitor.pause()
        self._pause.__enter__()

    def resume(self) -> None:
        """End the pause."""
        pause, self._pause = self._pause, None
        if pause is not None:
            pause.__exit__(None, None, None)

    def _enter(self, phase: AbstractContextManager[None]) -> None:
        self.leave()
        self._current = phase
        phase.__enter__()
