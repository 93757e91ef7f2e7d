"""Covariances and spectra of features: what a log of representations costs, and what it is off by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.clock import cost
from hjepa_dist_metrics import Collapse
from hjepa_dist_metrics.states import Covariance
from hjepa_dist_metrics.states.second_moments.sliced_gram import float64_is_slow, sliced_gram

_TOKENS = 196


def measure(device: torch.device, widths: list[int], rows: int, rounds: int) -> list[dict[str, Any]]:
    """Return the costs for bf16 features of each width."""
    return [_measure(device, width, rows, rounds) for width in widths]


def _measure(device: torch.device, width: int, rows: int, rounds: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    host = torch.randn(rows // _TOKENS, _TOKENS, width, generator=generator).to(torch.bfloat16)
    features = host.to(device)
    flat = features.flatten(0, 1)
    wide = flat.to(torch.float64)
    state, collapse = Covariance(width), Collapse(width)
    state.update(flat)
    matrix = state.matrix
    exact = torch.cov(host.flatten(0, 1).to(torch.float64).T)
    ways: dict[str, Callable[[], Any]] = {
        "float32 product": lambda: wide.to(torch.float32).T @ wide.to(torch.float32),
        "float64 product": lambda: wide.T @ wide,
        "product of digits": lambda: sliced_gram(wide),
        "covariance: update": lambda: state.update(flat),
        "collapse table: update": lambda: collapse.update(features),
        "spectrum: device": lambda: torch.linalg.eigvalsh(matrix),
        "spectrum: host": lambda: torch.linalg.eigvalsh(exact),
    }
    costs = {name: cost(action, device, rounds) for name, action in ways.items()}
    return {
        "width": width,
        "rows": len(flat),
        "float64 is slow": float64_is_slow(device),
        "error": _error(matrix, exact),
        "error of digits": _error(sliced_gram(wide), wide.T @ wide),
        "ways": {name: {"device, ms": 1e3 * c.device, "host, ms": 1e3 * c.host} for name, c in costs.items()},
    }


def _error(found: Tensor, expected: Tensor) -> float:
    there = expected.to(found.device)
    return float((found - there).abs().max() / there.abs().max())
