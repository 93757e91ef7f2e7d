"""Checkpoints of a run: one file, written whole or not at all, readable at any world size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hjepa_dist_metrics import ConfigError

_NAME = "step_{:08d}.pt"


def folder(template: str, run_name: str) -> Path:
    """Return the directory of a run's checkpoints: `template` with `{run_name}` filled in."""
    return Path(template.replace("{run_name}", run_name))


def require_unused(directory: str | Path) -> None:
    """Raise ConfigError where a run that starts anew would mix its checkpoints with another's.

    A directory with `{run_name}` in it is not there under that name, and a new run's name is its own.
    """
    found = newest(directory)
    if found is not None:
        raise ConfigError(
            f"{directory} holds another run's checkpoints, up to {found.name}: continue it with --resume, or "
            "name another training.checkpoint_dir ({run_name} in it keeps runs apart)"
        )


def save(directory: str | Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` as the checkpoint of `step`; a kill while writing leaves the older ones intact."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _NAME.format(step)
    partial = path.with_suffix(".partial")
    try:
        torch.save(state, partial)
        partial.replace(path)
    except (OSError, RuntimeError):  # the disk is full, for instance
        partial.unlink(missing_ok=True)
        raise
    return path


def newest(directory: str | Path) -> Path | None:
    """Return the checkpoint of the latest step, or None."""
    found = sorted(Path(directory).glob(_NAME.format(0).replace("00000000", "*")))
    return found[-1] if found else None


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint; ConfigError where the file is not one."""
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise ConfigError(f"cannot read the checkpoint {path}: {error}") from error
    return state
