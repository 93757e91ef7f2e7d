"""Checks of inputs by type, shape and dtype, none of which synchronises with a device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError

_AS_FLAGS = "torch.zeros(B, N, dtype=torch.bool).scatter_(1, indices, True)"


def described(value: Any) -> str:
    """Return what a value is: "a torch.int64 [4, 6] tensor", "a float64 (4, 3) ndarray", "'x'"."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} {list(value.shape)} tensor"
    if isinstance(value, np.ndarray):
        return f"a {value.dtype} {value.shape} ndarray"
    return repr(value) if isinstance(value, (str, int, float)) else f"a {type(value).__name__}"


def as_number(name: str, value: Any) -> Tensor:
    """Return a number, or a tensor or array of one element, as a float64 0-d tensor on its device.

    ConfigError, with the `name`, for anything else.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.detach().to(torch.float64).reshape(())
    if isinstance(value, (float, int, np.number)) or (isinstance(value, np.ndarray) and value.size == 1):
        return torch.as_tensor(value, dtype=torch.float64, device="cpu").reshape(())
    fix = ": reduce it first, with .mean() for instance" if isinstance(value, (Tensor, np.ndarray)) else ""
    raise ConfigError(f"{name} must be one number, got {described(value)}{fix}")


def device_of(tensors: Iterable[Tensor]) -> torch.device:
    """Return the device on which tensors meet: that of the first that is not on the host, else the host."""
    return next((tensor.device for tensor in tensors if not tensor.is_cpu), torch.device("cpu"))


def require_mask(name: str, mask: Any, *, grid: bool = False) -> None:
    """Raise ConfigError unless `mask` is bool [B, N], or [B, rows, columns] where `grid`."""
    if isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.ndim in ((2, 3) if grid else (2,)):
        return
    also = " or [B, rows, columns]" if grid else ""
    raise ConfigError(
        f"{name} must be bool [B, N]{also}, one flag a patch, True = masked; got {described(mask)}. "
        f"Indices of patches, int64 [B, K], become flags by {_AS_FLAGS}"
    )


def require_features(name: str, value: Any) -> None:
    """Raise ConfigError unless `value` is a tensor of floating-point numbers."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return
    fix = ": torch.from_numpy(...) makes one" if isinstance(value, np.ndarray) else ""
    raise ConfigError(f"{name} must be a floating-point tensor, got {described(value)}{fix}")
