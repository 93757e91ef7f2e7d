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
    fp16 after they are unscaled. `clipped` is set where the accelerator clips, for its reader to clear. Where
    `clip_grad_norm_` always gets all of the model's parameters, `clips_all` saves reading them back on the
    steps that do not log.
    """

    def __init__(
        self, accelerator: Accelerator, monitor: TrainingMonitor, *, clips_all: bool = False
    ) -> None:
        self._accelerator, self._monitor, self._clips_all = accelerator, monitor, clips_all
        self.clipped = False
        self._overrides = Overrides()
        self._overrides.within(accelerator, "backward", monitor.backward)
        self._overrides.wrap(accelerator, "clip_grad_norm_", self._clip_norm)
        self._overrides.within(accelerator, "clip_grad_value_", self._clipping)

    def close(self) -> None:
        """Leave the accelerator as it was."""
        self._overrides.restore()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _clip_norm(
        self, method: Callable[..., Any], parameters: Any, max_norm: float, norm_type: float = 2
    ) -> Any:
        by_formula = self._clips_all and norm_type == 2
        with self._clipping(float(max_norm) if by_formula else None):
            return method(parameters, max_norm, norm_type)

    @contextmanager
    def _clipping(self, max_norm: float | None = None) -> Iterator[None]:
        """Unscale the gradients first, once: the accelerator's own call comes after they are read."""
        self.clipped = True
        self._accelerator.unscale_gradients()
        unscaled = Overrides()
        unscaled.wrap(self._accelerator, "unscale_gradients", _do_nothing)
        try:
            with self._monitor.clipping(max_norm):
                yield
        finally:
            unscaled.restore()


def _do_nothing(method: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Stand in for a method that has been called already."""
