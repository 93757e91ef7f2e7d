"""From merged states of blocks to tags: few over all blocks, and many for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hjepa_dist_metrics.states import FourthMoments, NamedRows, UnitRanges
from hjepa_dist_metrics.values import Text

_NAMED = 3


@dataclass(frozen=True)
class BlockNumbers:
    """Hold the numbers of one block, over all rows of all ranks.

    `dead` is the number of units that have one value in all rows, `outlier_ratio` the largest root mean
    square of a unit over the median of all, `outlier` and `largest` the units with the largest root mean
    square and magnitude.
    """

    name: str
    rms: float
    absmax: float
    kurtosis: float
    zero_fraction: float
    dead: int
    units: int
    outlier_ratio: float
    outlier: int
    largest: int
    nonfinite: float

    @property
    def dead_fraction(self) -> float:
        """Return the share of dead units."""
        return self.dead / self.units


NUMBERS = ("rms", "absmax", "kurtosis", "zero_fraction", "dead_fraction", "outlier_ratio")


def block_numbers(units: NamedRows, elements: NamedRows) -> list[BlockNumbers]:
    """Return the numbers of each block, in the order of their names."""
    moments: dict[str, FourthMoments] = dict(elements.items())
    with np.errstate(all="ignore"):  # of values that are not finite: NaN, as it should be
        return [_of_block(name, ranges, moments[name]) for name, ranges in units.items()]


def _of_block(name: str, ranges: UnitRanges, moments: FourthMoments) -> BlockNumbers:
    total, sizes = ranges.count.sum(), ranges.rms
    magnitudes = np.maximum(np.abs(ranges.low), np.abs(ranges.high))
    bad = float(moments.nonfinite[0])
    highest, usual = float(sizes.max()), float(np.median(sizes))
    return BlockNumbers(
        name,
        rms=math.nan if bad else math.hypot(*ranges.norm) / math.sqrt(total),
        absmax=float(magnitudes.max()),
        kurtosis=float(moments.kurtosis[0]),
        zero_fraction=float(ranges.zeros.sum() / total),
        dead=int(((ranges.low == ranges.high) & (ranges.count > 1)).sum()),
        units=ranges.size,
        outlier_ratio=1.0 if highest == usual else float(np.divide(highest, usual)),
        outlier=int(sizes.argmax()),
        largest=int(magnitudes.argmax()),
        nonfinite=bad,
    )


def summary_tags(group: str, blocks: Sequence[BlockNumbers], *, gradients: bool = False) -> dict[str, Any]:
    """Return the tags over all blocks: the lowest, the median and the highest of their numbers."""
    values = {name: np.array([getattr(block, name) for block in blocks]) for name in NUMBERS}
    tags: dict[str, Any] = {
        f"{group}/rms_min": values["rms"].min(),
        f"{group}/rms_median": np.median(values["rms"]),
        f"{group}/rms_max": values["rms"].max(),
        f"{group}/absmax_max": values["absmax"].max(),
        f"{group}/zero_fraction_max": values["zero_fraction"].max(),
    }
    if gradients:
        return tags
    shaped = values["kurtosis"][~np.isnan(values["kurtosis"])]  # a block that is constant has none
    if len(shaped):
        tags |= {f"{group}/kurtosis_median": np.median(shaped), f"{group}/kurtosis_max": shaped.max()}
    tags |= {
        f"{group}/outlier_ratio_max": values["outlier_ratio"].max(),
        f"{group}/dead_units": sum(block.dead for block in blocks),
        f"{group}/dead_fraction_max": values["dead_fraction"].max(),
        f"{group}/nonfinite": sum(block.nonfinite for block in blocks),
    }
    return tags | _texts(group, blocks)


def _texts(group: str, blocks: Sequence[BlockNumbers]) -> dict[str, Text]:
    """Return where the numbers over all blocks come from."""
    widest = max(blocks, key=lambda block: block.outlier_ratio)
    largest = max(blocks, key=lambda block: block.absmax)
    texts = {
        "outlier": f"`{widest.name}`, unit {widest.outlier}: {widest.outlier_ratio:.3g} times the median",
        "largest": f"`{largest.name}`, unit {largest.largest}: {largest.absmax:.4g}",
    }
    dead = sorted((block for block in blocks if block.dead), key=lambda block: -block.dead)
    if dead:
        shown = [f"`{block.name}`: {block.dead} of {block.units}" for block in dead[:_NAMED]]
        more = f", and {len(dead) - _NAMED} blocks more" if len(dead) > _NAMED else ""
        texts["dead"] = ", ".join(shown) + more
    bad = [block.name for block in blocks if block.nonfinite]
    if bad:
        texts["first_nonfinite"] = bad[0]
    return {f"{group}/{name}": Text(text) for name, text in texts.items()}


def per_block_tags(group: str, blocks: Sequence[BlockNumbers], *, gradients: bool = False) -> dict[str, Any]:
    """Return the numbers of each block; a kurtosis that is not defined is left out."""
    names = ("rms", "absmax", "zero_fraction") if gradients else NUMBERS
    numbers = {f"{group}/{b.name}_{name}": getattr(b, name) for b in blocks for name in names}
    return {
        tag: value for tag, value in numbers.items() if not (tag.endswith("_kurtosis") and np.isnan(value))
    }
