"""The metrics' file in a checkpoint of the Trainer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.monitor import LoggingConfig, TrainingMonitor

logger = logging.getLogger(__name__)

NAME = "metrics_state.pt"


def folder(args: Any, state: Any) -> Path:
    """Return the checkpoint of the current step."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def save(monitor: TrainingMonitor, directory: Path, *, writes: bool) -> None:
    """Write the merged metrics into a checkpoint where `writes`. A collective call."""
    with monitor.pause():
        monitor.flush()
        state = {"run_name": monitor.run_name, "monitor": monitor.state_dict()}
        if writes:
            partial = directory / f"{NAME}.partial"
            torch.save(state, partial)
            partial.replace(directory / NAME)


def load(directory: Path) -> dict[str, Any] | None:
    """Return a checkpoint's metrics; None, with a warning, where it has none."""
    path = directory / NAME
    if not path.exists():
        logger.warning(
            "the checkpoint %s has no %s: metrics that count over the whole run begin anew", directory, NAME
        )
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigError(f"cannot read the metrics of the checkpoint, {path}: {error}") from error
    return state


def continued(config: LoggingConfig, saved: Mapping[str, Any] | None) -> LoggingConfig:
    """Return the settings under the name that the saved run writes under."""
    return config if saved is None else named(config, str(saved["run_name"]))


def named(config: LoggingConfig, run_name: str) -> LoggingConfig:
    """Return the settings of a run with its own name."""
    return replace(config, experiment_name=run_name)
