"""Gradient clipping that says what it did (S0 8.2): norms, coefficient, and how often it engages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.states import Replicated

_TORCH_EPS = 1e-6  # torch.nn.utils.clip_grad_norm_ adds it to the norm


class GradientClipping(DistributedMetric):
    """Clip gradients by their global norm and keep count, without waiting for the device.

    `clip_` replaces `torch.nn.utils.clip_grad_norm_`. Tags under `gradient/`: `global_norm_before_clip`,
    `global_norm_after_clip`, `clipping_ratio` (after / before), `was_clipped` of the latest step;
    `clipping_percentage` over the whole run and `clipping_percentage_window` over the last `window` steps;
    `nonfinite_steps`, which count neither as clipped nor as steps of a percentage.
    """

    persistent = True

    def __init__(self, parameters: Iterable[Tensor] | Tensor, window: int = 100) -> None:
        if window < 1:
            raise ConfigError(f"the window must hold at least one step, got window={window}")
        self.parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        if not self.parameters:
            raise ConfigError("there are no parameters to clip: is the model empty, or the iterator used up?")
        self.window = window
        self.add_state("latest", Replicated(shape=(3,)))  # norm before, after, whether clipped
        self.add_state("totals", Replicated(shape=(3,)))  # finite steps, clipped steps, nonfinite steps
        self.add_state("recent", Replicated(shape=(window,)))  # 1 clipped, 0 not, NaN unknown
        self._position = 0

    def clip_(self, max_norm: float) -> Tensor:
        """Scale the gradients to a global L2 norm of at most `max_norm`; return the norm before, 0-d.

        The norm is computed in float32 whatever the gradients' dtype. ConfigError unless max_norm > 0;
        infinity measures without clipping.
        """
        if not max_norm > 0:
            raise ConfigError(f"max_norm must be positive (infinity to only measure), got {max_norm!r}")
        gradients = _gradients(self.parameters)
        if not gradients:
            raise ConfigError("no parameter has a gradient: call clip_ after backward and before zero_grad")
        norm = global_norm(gradients)
        coefficient = torch.clamp(max_norm / (norm + _TORCH_EPS), max=1.0)
        if not math.isinf(max_norm):
            scale_(gradients, coefficient)
        self.update(norm, coefficient, norm > max_norm)
        return norm

    def update(self, norm: Tensor, coefficient: Tensor, clipped: Tensor) -> None:
        """Record one step: norm before, coefficient applied, whether it was above the threshold; all 0-d."""
        norm = norm.to(torch.float64)
        finite = torch.isfinite(norm)
        engaged = (clipped & finite).to(torch.float64)
        counted = finite.to(torch.float64)
        self.latest.update(torch.stack([norm, norm * coefficient, engaged]))
        step = torch.stack([counted, engaged, 1 - counted])
        self.totals.update(step + torch.nan_to_num(self.totals.data[0]).to(step.device, non_blocking=True))
        recent = self.recent.data[0].to(step.device, non_blocking=True).clone()
        recent[self._position % self.window] = torch.where(finite, engaged, float("nan"))
        self._position += 1
        self.recent.update(recent)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tags; {} before the first step."""
        steps, clipped, nonfinite = states["totals"].value
        if not steps + nonfinite > 0:
            return {}
        before, after, engaged = states["latest"].value
        recent = states["recent"].value
        known = recent[recent == recent]
        return {
            "gradient/global_norm_before_clip": before,
            "gradient/global_norm_after_clip": after,
            "gradient/was_clipped": engaged,
            "gradient/clipping_ratio": after / before if before != 0 else 1.0,
            "gradient/clipping_percentage": 100.0 * clipped / steps if steps else 0.0,
            "gradient/clipping_percentage_window": 100.0 * known.mean() if len(known) else 0.0,
            "gradient/nonfinite_steps": nonfinite,
        }


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return the gradients' values: of sparse ones, the values that are there."""
    found = []
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.is_sparse:
            parameter.grad = gradient = gradient.coalesce()
            gradient = gradient.values()
        found.append(gradient.detach())
    return found


def global_norm(gradients: list[Tensor]) -> Tensor:
    """Return the L2 norm over all gradients, float32 or better, 0-d, on the first one's device."""
    device = gradients[0].device
    norms: list[Tensor] = []
    for group in _alike(gradients):
        wide = torch.float64 if group[0].dtype == torch.float64 else torch.float32
        norms += [n.to(device, non_blocking=True) for n in torch._foreach_norm(group, 2.0, dtype=wide)]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total


def scale_(gradients: list[Tensor], coefficient: Tensor) -> None:
    """Multiply every gradient by a 0-d coefficient, in place."""
    for group in _alike(gradients):
        torch._foreach_mul_(group, coefficient.to(group[0].device, non_blocking=True))


def _alike(gradients: list[Tensor]) -> list[list[Tensor]]:
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for gradient in gradients:
        groups.setdefault((gradient.device, gradient.dtype), []).append(gradient)
    return list(groups.values())
