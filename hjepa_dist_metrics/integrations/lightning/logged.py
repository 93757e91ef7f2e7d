"""Numbers that a module logs by `self.log`, averaged exactly over batches and ranks."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any

from torch import Tensor

from hjepa_dist_metrics.integrations.overrides import Overrides
from hjepa_dist_metrics.metrics import MetricCollection, NamedMeans
from hjepa_dist_metrics.monitor import TrainingMonitor

_VALIDATION = ("validation", "valid", "val")


class LoggedValues:
    """Listen to `self.log` and average by samples: sum(size * value) / sum(size) over all ranks.

    Lightning's own `sync_dist=True` is a mean of the ranks' means, which is another number where ranks have
    samples unevenly. Metrics of torchmetrics, and reductions other than the mean, are left to Lightning.
    """

    def __init__(self, module: Any, monitor: TrainingMonitor, *, training: bool) -> None:
        self._monitor, self._training = monitor, training
        self._validation = NamedMeans()
        self._collection = MetricCollection(
            {"validation": self._validation}, monitor.context, monitor.config.sync_timeout, "validation"
        )
        if training:
            self._in_training = NamedMeans()
            monitor.add_metric("logged", self._in_training)
        self.batch_size = 1
        self.validating = False
        self._overrides = Overrides()
        self._overrides.wrap(module, "log", self._log)

    def validated(self) -> dict[str, Any]:
        """Return the means of the validation that is over, and start anew. A collective call."""
        means = self._collection.compute()
        self._validation.reset()
        return {_validation_tag(name): value for name, value in means.items()}

    def close(self) -> None:
        """Leave the module as it was."""
        self._overrides.restore()

    def _log(self, method: Callable[..., None], name: str, value: Any, *args: Any, **more: Any) -> None:
        method(name, value, *args, **more)
        if more.get("reduce_fx", "mean") != "mean" or not _is_number(value):
            return
        numbers = {name: value.detach() if isinstance(value, Tensor) else value}
        size = more.get("batch_size") or self.batch_size
        if self.validating:
            self._validation.update(numbers, size)
        elif self._training:
            self._in_training.update(numbers, size)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)


def _validation_tag(name: str) -> str:
    """Return `val/loss` for `val_loss`, `valid/loss`, and for `loss` logged in a validation."""
    for word in _VALIDATION:
        if name.startswith((f"{word}_", f"{word}/")):
            return f"val/{name[len(word) + 1 :]}"
    return f"val/{name}"
