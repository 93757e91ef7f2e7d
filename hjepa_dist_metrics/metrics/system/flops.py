"""How much of the hardware a model uses: its arithmetic, counted once, over the peak (2204.02311)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hjepa_dist_metrics.errors import ConfigError

# Dense bf16 / fp16 peaks with float32 accumulation, in FLOP/s, from the vendors' data sheets. The longest
# name that a device's name contains is taken.
PEAKS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
    "MI300X": 1307e12,
    "MI250X": 383e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Return the device's dense half-precision peak in FLOP/s; None where it is not known."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """Return the peak of a device by its name, or None: a wrong peak is worse than none."""
    words = set(name.replace("-", " ").replace("/", " ").split())
    matches = [known for known in PEAKS if set(known.split()) <= words]
    return PEAKS[max(matches, key=len)] if matches else None


def count_flops(step: Callable[[], Any]) -> int:
    """Run `step` once and return its floating-point operations, by torch's counter.

    The counter counts matrix products, convolutions and attention, forward and backward. ConfigError where
    it finds none.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    total = int(counter.get_total_flops())
    if total == 0:
        raise ConfigError("no floating-point operation was counted: does the step run the model?")
    return total
