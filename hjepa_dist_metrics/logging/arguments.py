"""What MetricsLogger's arguments become."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError, DesyncError
from hjepa_dist_metrics.logging.host_copy import whole
from hjepa_dist_metrics.metrics import MetricCollection
from hjepa_dist_metrics.settings.schema import LoggingConfig, from_mapping
from hjepa_dist_metrics.sinks import HParam


@contextmanager
def raised_once(collection: MetricCollection) -> Iterator[None]:
    """Let a failed update be forgotten when every rank has raised it: the next call is a new one."""
    try:
        yield
    except DesyncError:
        for metric in collection.values():
            metric.failure = None
        raise


def configure(
    config: Any, name: str | None, log_dir: str | Path | None, use_tensorboard: bool, use_wandb: bool
) -> LoggingConfig:
    """Return the settings with the logger's own arguments in place."""
    settings = from_mapping(config)
    return replace(
        settings,
        experiment_name=settings.experiment_name if name is None else name,
        log_dir=settings.log_dir if log_dir is None else str(log_dir),
        tensorboard=replace(settings.tensorboard, enabled=use_tensorboard and settings.tensorboard.enabled),
        wandb=replace(settings.wandb, enabled=use_wandb or settings.wandb.enabled),
    )


def as_tensor(name: str, values: Any) -> Tensor:
    """Return a tensor of numbers; ConfigError for anything else."""
    if isinstance(values, Tensor):
        return whole(values)
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise ConfigError(f"histogram {name!r} needs numbers, got {array.dtype}")
    return torch.from_numpy(np.array(array))


def check_edges(edges: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return edges of bins as float64; ConfigError where they do not rise."""
    limits = np.asarray(edges, dtype=np.float64)
    if limits.ndim != 1 or len(limits) < 2 or not (np.diff(limits) > 0).all():
        raise ConfigError(f"histogram edges must be at least two rising numbers, got {edges!r}")
    return limits


def as_setting(value: Any) -> HParam:
    """Return a setting as a plain number or text."""
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (np.generic, Tensor)) and np.size(value) == 1:
        number: HParam = value.item()
        return number
    return str(value)
