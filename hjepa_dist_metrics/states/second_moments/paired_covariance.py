"""Moments of joined rows [x, y] up to the fourth order that the unbiased HSIC of x and y needs."""

from __future__ import annotations

import torch
from torch import Tensor

from hjepa_dist_metrics.states.scales import power_of_two
from hjepa_dist_metrics.states.second_moments.covariance import Covariance, Tensors, mirrored


class PairedCovariance(Covariance):
    """Keep the covariance of rows [x, y], whose first `first` columns are x and the other `second` ones y.

    With a = |x - mean|^2 and b = |y - mean|^2 of each row, `.energy` [2, 2] is the sum of (a, b) (a, b)^T.
    It is kept about the mean, like M2, and merging moves it to the common mean, for which `skew` [2, D], the
    sum of (a, b) (row - mean)^T, is kept too.
    """

    def __init__(self, first: int, second: int) -> None:
        self.first, self.second = first, second
        super().__init__(first + second)

    def _blank(self) -> Tensors:
        further = {
            "energy": torch.zeros((2, 2), dtype=torch.float64, device="cpu"),
            "skew": torch.zeros((2, self.dim), dtype=torch.float64, device="cpu"),
        }
        return super()._blank() | further

    @property
    def signature(self) -> str:
        """Describe kind and both widths."""
        return f"PairedCovariance[{self.first}+{self.second}]"

    @property
    def energy(self) -> Tensor:
        """Return the sums of a^2, a b and b^2, float64 [2, 2]."""
        return self._energy * power_of_two(4 * self.head[2])

    def pack(self) -> Tensors:
        """Return the tensors of the covariance, `energy` and `skew`, of rows / 2^exponent."""
        return super().pack() | {"energy": self._energy, "skew": self._skew}

    def _load(self, tensors: Tensors) -> None:
        super()._load(tensors)
        self._energy, self._skew = (tensors[name].to(torch.float64) for name in ("energy", "skew"))

    def _of_centred(self, centred: Tensor) -> Tensors:
        squared = centred.square()
        pairs = torch.stack([squared[:, : self.first].sum(dim=1), squared[:, self.first :].sum(dim=1)])
        return super()._of_centred(centred) | {"energy": pairs @ pairs.T, "skew": pairs @ centred}

    def _merge_further(self, mine: Tensors, theirs: Tensors, merged: Tensors) -> Tensors:
        parts = [self._about(part, merged) for part in (mine, theirs)]
        return {name: parts[0][name] + parts[1][name] for name in ("energy", "skew")}

    def _about(self, part: Tensors, merged: Tensors) -> Tensors:
        """Return energy and skew of a part about the merged mean, in the merged scale."""
        count, _, own = part["head"]
        exponent = merged["head"][2]
        down = (own - exponent).clamp(max=0)
        m2 = part["m2"] * power_of_two(2 * down)
        if m2.ndim == 1:
            m2 = mirrored(m2, self.dim)
        shift = torch.where(count > 0, merged["mean"] - part["mean"], 0.0) * power_of_two(-exponent)
        energy, skew = part["energy"] * power_of_two(4 * down), part["skew"] * power_of_two(3 * down)
        return self._shifted(count, m2, energy, skew, shift)

    def _shifted(self, count: Tensor, m2: Tensor, energy: Tensor, skew: Tensor, shift: Tensor) -> Tensors:
        """Return energy and skew about a point that lies `shift` [D] from the mean."""
        sides = torch.zeros((2, self.dim), dtype=shift.dtype, device=shift.device)
        sides[0, : self.first], sides[1, self.first :] = shift[: self.first], shift[self.first :]
        projected, lengths = sides @ m2, sides.square().sum(dim=1)
        spread = m2.diagonal()
        traces = torch.stack([spread[: self.first].sum(), spread[self.first :].sum()])
        cross, mixed = skew @ sides.T, torch.outer(lengths, traces)
        quadratic = mixed + mixed.T + 4.0 * (projected @ sides.T) + count * torch.outer(lengths, lengths)
        sums = traces + count * lengths  # of a and b about the point
        return {
            "energy": energy - 2.0 * (cross + cross.T) + quadratic,
            "skew": skew - 2.0 * projected - torch.outer(sums, shift),
        }
