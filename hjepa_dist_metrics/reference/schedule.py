"""The learning rate as a function of the step."""

from __future__ import annotations

import math


def learning_rate(step: int, total_steps: int, peak: float, final: float, warmup_fraction: float) -> float:
    """Return a linear rise to `peak` over the warmup, then half a cosine down to `final`."""
    warmup = int(warmup_fraction * total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
    return final + (peak - final) * (1.0 + math.cos(math.pi * progress)) / 2.0
