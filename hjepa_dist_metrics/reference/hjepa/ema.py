"""The teacher's exponential moving average, which looks through wrappers."""

from __future__ import annotations

import math

import torch
from torch import nn

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.parallel import unwrap


def ema_momentum(step: int, total_steps: int, start: float, end: float) -> float:
    """Return end - (end - start) * (1 + cos(pi * step / (total - 1))) / 2, `end` after the last step."""
    progress = min(max(step / max(total_steps - 1, 1), 0.0), 1.0)
    return end - (end - start) * (1.0 + math.cos(math.pi * progress)) / 2.0


@torch.no_grad()
def ema_update(source: nn.Module, target: nn.Module, momentum: float) -> None:
    """Move `target` to momentum * target + (1 - momentum) * source; buffers are copied. Either may be
    wrapped.

    Parameters are paired by name; ConfigError where the two modules differ.
    """
    source, target = unwrap(source), unwrap(target)
    live, slow = dict(source.named_parameters()), dict(target.named_parameters())
    if live.keys() != slow.keys():
        raise ConfigError(
            f"EMA needs equal modules; parameters of only one: {sorted(live.keys() ^ slow.keys())}"
        )
    torch._foreach_lerp_(list(slow.values()), [live[name] for name in slow], 1.0 - momentum)
    buffers = dict(source.named_buffers())
    for name, buffer in target.named_buffers():
        buffer.copy_(buffers[name])
