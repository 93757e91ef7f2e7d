"""Kurtosis and skewness, merged in any order: the shape of a distribution at any scale and offset."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.states.base import Numeric
from hjepa_dist_metrics.states.moments import Moments
from hjepa_dist_metrics.states.row_state import Block, RowState, namespace


class FourthMoments(RowState):
    """Keep `.count`, `.mean`, `.std` (divided by n), `.skewness`, `.kurtosis` and `.nonfinite` of values.

    Merged after Pebay (2008, "Formulas for robust, one-pass parallel computation of covariances and
    arbitrary-order statistical moments"). Kept are the root of the sum of squares about the mean, and the
    sums of third and fourth powers over the third and fourth power of that root, which no size of the values
    takes out of the range of float64. Kurtosis is n sum (x - m)^4 / (sum (x - m)^2)^2: 3 of a Gaussian. It
    is NaN of values that are all the same.
    """

    # Count, mean, root of the sum of squares about the mean, relative third and fourth moment, nonfinite.
    fields = 6

    @classmethod
    def _blank(cls, size: int) -> Tensor:
        return torch.zeros((cls.fields, size), dtype=torch.float64, device="cpu")

    @property
    def count(self) -> Any:
        """Return the number of values."""
        return self._field(0)

    @property
    def mean(self) -> Any:
        """Return the mean; 0 of nothing."""
        return self._field(1)

    @property
    def std(self) -> Any:
        """Return the square root of the mean square about the mean; 0 of nothing."""
        return self._field(2) / _at_least(self._field(0), 1.0) ** 0.5

    @property
    def skewness(self) -> Any:
        """Return the third standardised moment; NaN of values that are all the same."""
        return self._standardised(3, self._field(0) ** 0.5)

    @property
    def kurtosis(self) -> Any:
        """Return the fourth standardised moment; NaN of values that are all the same."""
        return self._standardised(4, self._field(0))

    @property
    def nonfinite(self) -> Any:
        """Return how many values were NaN or infinite."""
        return self._field(5)

    def _standardised(self, field: int, factor: Any) -> Any:
        spread = self.data[2].cpu().numpy()
        known = torch.from_numpy(spread > 0).reshape(self.shape).numpy()
        value = self._field(field) * factor
        if not self.shape:
            return value if bool(known) or spread[0] != spread[0] else float("nan")
        value[~known] = float("nan")
        return value

    def update(self, values: Numeric) -> None:
        """Fold values [..., *shape] in."""
        batch = self._batch(values)
        if batch.shape[0]:
            self.data = self.merge_rows(self.data, fourth_moments_of(batch))

    @classmethod
    def merge_rows(cls, lower: Block, upper: Block) -> Block:
        """Merge counts, means and roots as `Moments` does, and the higher moments about the common mean."""
        xp = namespace(lower)
        merged = lower + upper
        both = (lower[0] > 0) & (upper[0] > 0)
        count = merged[0].clip(min=1)
        first, second = lower[0] / count, upper[0] / count
        four = xp.stack([lower[0], lower[1], lower[2], lower[5]])
        merged[:3] = Moments.merge_rows(four, xp.stack([upper[0], upper[1], upper[2], upper[5]]))[:3]
        root = xp.where(merged[2] > 0, merged[2], xp.ones_like(merged[2]))
        a, b = lower[2] / root, upper[2] / root
        shift = xp.where(both, upper[1] - lower[1], xp.zeros_like(count)) / root
        third_a, third_b = lower[3] * a**3, upper[3] * b**3
        weight = count * first * second
        merged[3] = (
            third_a
            + third_b
            + shift * (shift * shift * weight * (first - second) + 3 * (first * b * b - second * a * a))
        )
        merged[4] = (
            lower[4] * a**4
            + upper[4] * b**4
            + shift**4 * weight * (first * first - first * second + second * second)
            + 6 * shift * shift * (first * first * b * b + second * second * a * a)
            + 4 * shift * (first * third_b - second * third_a)
        )
        return merged


def fourth_moments_of(rows: Tensor) -> Tensor:
    """Return the block of rows float64 [n, columns], n > 0."""
    bad = (~torch.isfinite(rows)).sum(dim=0).to(torch.float64)
    shifted = rows - rows[:1]
    offset = shifted.mean(dim=0)
    # One infinity gives inf or NaN depending on its place; NaN in either case is the same for every split.
    offset = torch.where(bad > 0, float("nan"), offset)
    centred = shifted - offset
    scale = centred.abs().amax(dim=0)
    scale = torch.where(scale > 0, scale, torch.where(scale == 0, 1.0, scale))
    centred = centred / scale
    squares = centred * centred
    second = squares.sum(dim=0)
    safe = torch.where(second == 0, 1.0, second)
    third = (squares * centred).sum(dim=0) / safe**1.5
    fourth = (squares * squares).sum(dim=0) / safe**2
    count = torch.full_like(second, float(rows.shape[0]))
    return torch.stack([count, rows[0] + offset, scale * second.sqrt(), third, fourth, bad])


def _at_least(value: Any, least: float) -> Any:
    return max(value, least) if isinstance(value, float) else value.clip(min=least)
