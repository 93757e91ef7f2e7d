"""Watch an Accelerator's `backward` and clipping, in a loop written as its documentation does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from accelerate import Accelerator
from typing_extensions import Self

from hjepa_dist_metrics.integrations.overrides import Overrides
from hjepa_dist_metrics.monitor import TrainingMonitor


class ObservedAccelerator:
    """Time `accelerator.backward` and measure what its clipping does; gradients stay as they are.

        with TrainingMonitor(model, optimizer, config) as monitor, ObservedAccelerator(accelerator, monitor):
            for batch in monitor.batches(loader):
                ...
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)

    `model` and `optimizer` are what `prepare` returned. Gradients are read before they are clipped, and under
    fp16 after they are unscaled. `clipped` is set where the accelerator clips, for its reader to clear.
    """

    def __init__(self, accelerator: Accelerator, monitor: TrainingMonitor) -> None:
        self._accelerator, self._monitor = accelerator, monitor
        self.clipped = False
        self._overrides = Overrides()
        self._overrides.within(accelerator, "backward", monitor.backward)
        for name in ("clip_grad_norm_", "clip_grad_value_"):
            self._overrides.within(accelerator, name, self._clipping)

    def close(self) -> None:
        """Leave the accelerator as it was."""
        self._overrides.restore()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _clipping(self) -> Iterator[None]:
        """Unscale the gradients first, once: the accelerator's own call comes after they are read."""
        self.clipped = True
        self._accelerator.unscale_gradients()
        unscaled = Overrides()
        unscaled.wrap(self._accelerator, "unscale_gradients", _do_nothing)
        try:
            with self._monitor.clipping():
                yield
        finally:
            unscaled.restore()


def _do_nothing(method: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Stand in for a method that has been called already."""
