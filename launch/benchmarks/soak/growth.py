"""Is what a process holds flat: the last third of its samples beside the first, the warm-up left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._ranks import median

# How much more the last third may hold than the first.
ALLOWED = {"resident": 16 << 20, "descriptors": 0, "threads": 0, "python threads": 0, "waiting": 50}
_WARMUP = 5  # one part in so many
LEAST = 15  # samples of which a trend can be told


def read(path: Path) -> list[dict[str, int]]:
    """Return the samples of a file; a last line that a kill cut short is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def growth(samples: Sequence[dict[str, int]]) -> dict[str, dict[str, Any]]:
    """Return by kind the medians of the first and the last third, and whether it is flat."""
    warm = samples[len(samples) // _WARMUP :]
    third = max(1, len(warm) // 3)
    found = {}
    for kind, allowed in ALLOWED.items():
        first, last = (median([sample[kind] for sample in part]) for part in (warm[:third], warm[-third:]))
        found[kind] = {"first": first, "last": last, "flat": last - first <= allowed}
    return found
