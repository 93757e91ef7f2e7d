"""Count, mean and centred second moments of rows, merged after Chan et al. (1983) in float64.

Batches are shifted by one of their own rows before anything is squared, as in `states/moments.py`, and
squares are those of rows divided by a power of two where float64 could not hold them: `Covariance.scaled`.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from typing_extensions import Self

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.states.base import State, as_tensor, follow, require_same_signature
from hjepa_dist_metrics.states.rows import blocks, row_weights
from hjepa_dist_metrics.states.scales import power_of_two, scale_exponent
from hjepa_dist_metrics.states.second_moments.decompositions import symmetric_eigenvalues
from hjepa_dist_metrics.states.second_moments.sliced_gram import gram

Tensors = dict[str, Tensor]

_MOST_KEPT = 1024  # whose triangle's places take 8 MB


class Covariance(State):
    """Keep `.count`, `.mean` [D] and the centred second moment of rows: `.matrix` = M2 / (n - 1), [D, D].

    Rows of any size that float64 can hold have moments: M2 is kept of rows / 2^e, where e is 0 unless the
    largest element is beyond 2^128 or below 2^-128. What a sync sends is the triangle: it does not depend on
    the number of rows.
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ConfigError(f"a covariance needs at least one dimension, got dim={dim}")
        self.dim = dim
        self._load(self._blank())
        self._fresh = True

    def _blank(self) -> Tensors:
        return {
            "head": _zeros(3),
            "mean": _zeros(self.dim),
            "m2": _zeros(self.dim, self.dim),
        }

    @property
    def signature(self) -> str:
        """Describe kind and width."""
        return f"Covariance[{self.dim}]"

    def empty(self) -> Self:
        """Return a covariance of nothing."""
        state = self.adopt(self._blank())
        state._fresh = True
        return state

    def pack(self) -> Tensors:
        """Return count, nonfinite rows and exponent (`head`), `mean` and, of rows / 2^exponent, `m2`."""
        return {"head": self.head, "mean": self._mean, "m2": self._m2}

    def _load(self, tensors: Tensors) -> None:
        self.head, self._mean, self._m2 = (tensors[name].to(torch.float64) for name in ("head", "mean", "m2"))
        self._eigenvalues: Tensors = {}
        self._fresh = False  # whether the state has seen nothing, as far as is known without asking a device

    @property
    def count(self) -> int:
        """Return the number of rows."""
        return int(self.head[0].item())

    @property
    def nonfinite(self) -> int:
        """Return how many rows held a NaN or an infinity."""
        return int(self.head[1].item())

    @property
    def mean(self) -> Tensor:
        """Return the mean row, float64 [D]."""
        return self._mean

    @property
    def m2(self) -> Tensor:
        """Return the centred sum of x x^T, float64 [D, D]."""
        return self._m2 * power_of_two(2 * self.head[2])

    @property
    def matrix(self) -> Tensor:
        """Return the unbiased covariance, float64 [D, D]; zeros of one row."""
        return self.m2 / (self.head[0] - 1).clamp(min=1)

    @property
    def second_moment(self) -> Tensor:
        """Return the uncentred sum of x x^T, float64 [D, D]."""
        return self.m2 + self.head[0] * torch.outer(self._mean, self._mean)

    def scaled(self) -> tuple[Self, int]:
        """Return the moments of rows / 2^e, whose fourth powers float64 can hold, and e.

        e is 0, and the moments are these, where the largest element is between 2^-128 and 2^128.
        """
        exponent = int(self.head[2].item())
        if exponent == 0:
            return self, 0
        packed = self.pack()
        packed["head"] = self.head * self.head.new_tensor([1.0, 1.0, 0.0])
        packed["mean"] = self._mean * power_of_two(-self.head[2])
        return self.adopt(packed), exponent

    def spectrum(self, of: str = "matrix") -> Tensor:
        """Return the eigenvalues of `matrix` or `second_moment`, rising, [D]; NaN where that is not finite.

        They are worked out once, at the first call.
        """
        if of not in self._eigenvalues:
            self._eigenvalues[of] = symmetric_eigenvalues(getattr(self, of))
        return self._eigenvalues[of]

    def update(self, rows: Tensor, valid: Tensor | None = None) -> None:
        """Fold rows [..., D] in; `valid` [...] leaves rows out."""
        rows = as_tensor(rows, self._m2.device)
        if rows.ndim < 1 or rows.shape[-1] != self.dim:
            raise ConfigError(f"expected rows of width {self.dim}, got shape {list(rows.shape)}")
        weight = None if valid is None else row_weights(valid, rows.shape[:-1], rows.device)
        self._load_followed(rows)
        for block, mask in blocks(rows.reshape(-1, self.dim), weight):
            seen = self._of_block(block, mask)
            self._load(seen if self._fresh else self.merge(self.adopt(seen)).pack())

    def _load_followed(self, rows: Tensor) -> None:
        """Go to the device of the rows; a state that has seen nothing stays one."""
        fresh = self._fresh
        self._load({name: follow(tensor, rows) for name, tensor in self.pack().items()})
        self._fresh = fresh

    def _of_block(self, block: Tensor, valid: Tensor | None) -> Tensors:
        """Return the moments of one block of rows [n, D]."""
        head, mean, centred = centre_rows(block, valid)
        return {"head": head, "mean": mean, **self._of_centred(centred)}

    def _of_centred(self, centred: Tensor) -> Tensors:
        """Return the moments of rows [n, D] about their mean."""
        return {"m2": gram(centred)}

    def merge(self, other: Self) -> Self:
        """Merge about the common mean (Chan)."""
        require_same_signature(self, other)
        mine, theirs = self.pack(), {name: follow(t, self._m2) for name, t in other.pack().items()}
        n, m = mine["head"][0], theirs["head"][0]
        total = (n + m).clamp(min=1)
        delta = torch.where((n > 0) & (m > 0), theirs["mean"] - self._mean, 0.0)
        start = torch.where(n > 0, self._mean, theirs["mean"])
        exponent = _common_exponent(mine["head"], theirs["head"])
        shift = delta * power_of_two(-exponent)
        m2 = _rescaled(mine, exponent) + _rescaled(theirs, exponent) + self._product(shift) * (n * m / total)
        head = torch.stack([n + m, mine["head"][1] + theirs["head"][1], exponent])
        merged = {"head": head, "mean": start + delta * (m / total), "m2": m2}
        return self.adopt(merged | self._merge_further(mine, theirs, merged))

    def _merge_further(self, mine: Tensors, theirs: Tensors, merged: Tensors) -> Tensors:
        """Return what a subclass keeps beside the moments, merged: packed tensors in, packed tensors out."""
        return {}

    def _product(self, delta: Tensor) -> Tensor:
        """Return delta delta^T in the form of the moments, a matrix or its triangle."""
        if self._m2.ndim == 2:
            return torch.outer(delta, delta)
        upper = _triangle(self.dim)
        return delta[upper[0]] * delta[upper[1]]

    def compact(self, tensors: Tensors) -> Tensors:
        """Keep the triangle of the moments."""
        if tensors["m2"].ndim == 1:
            return tensors
        upper = _triangle(self.dim)
        return {**tensors, "m2": tensors["m2"][upper[0], upper[1]]}

    def expand(self, tensors: Tensors) -> Tensors:
        """Mirror the triangle."""
        return {**tensors, "m2": mirrored(tensors["m2"], self.dim)}


def mirrored(triangle: Tensor, dim: int) -> Tensor:
    """Return the symmetric matrix [D, D] of a triangle [D (D + 1) / 2]."""
    upper, matrix = _triangle(dim), _zeros(dim, dim)
    matrix[upper[0], upper[1]] = triangle
    matrix[upper[1], upper[0]] = triangle
    return matrix


def _common_exponent(head: Tensor, other: Tensor) -> Tensor:
    """Return the larger exponent of two states, that of the other one where a state has seen nothing."""
    mine = torch.where(head[0] > 0, head[2], other[2])
    return torch.maximum(mine, torch.where(other[0] > 0, other[2], mine))


def _rescaled(tensors: Tensors, exponent: Tensor) -> Tensor:
    """Return packed moments for another exponent; squares that are lost beside larger ones become 0."""
    return tensors["m2"] * power_of_two(2 * (tensors["head"][2] - exponent).clamp(max=0))


def _triangle(dim: int) -> Tensor:
    """Return the places on and above the diagonal, int64 [2, D (D + 1) / 2]."""
    return _kept_triangle(dim) if dim <= _MOST_KEPT else torch.triu_indices(dim, dim, device="cpu")


@functools.lru_cache(maxsize=4)
def _kept_triangle(dim: int) -> Tensor:
    return torch.triu_indices(dim, dim, device="cpu")


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device="cpu")


def centre_rows(block: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the head and the mean [D] of rows [n, D], and the rows about it / 2^exponent, in few passes.

    A row's sum is nonfinite where one of its elements is, and so is a column's: matrix-vector products find
    them in a tenth of the time that it takes to look at every element. Rows that are not float64 are never
    too large to be squared in float64: their exponent is 0.
    """
    rows = block.to(torch.float64)
    bad = ~torch.isfinite(rows @ rows.new_ones(rows.shape[1]))
    if valid is None:
        count = torch.full((), float(rows.shape[0]), dtype=torch.float64, device=rows.device)
        pivot, centred = rows[0], rows - rows[0]
    else:
        count, bad = valid.sum().to(torch.float64), bad & valid
        pivot = rows.index_select(0, valid.to(torch.int8).argmax()[None])[0]
        centred = (rows - pivot).masked_fill_(~valid[:, None], 0.0)
    offset = (rows.new_ones(rows.shape[0]) @ centred) / count.clamp(min=1)
    # One infinity gives inf or NaN depending on its place; NaN in either case is the same for every split.
    offset = torch.where(torch.isfinite(offset), offset, float("nan"))
    centred -= offset
    if valid is not None:
        centred.masked_fill_(~valid[:, None], 0.0)
    exponent = torch.zeros_like(count)
    if block.dtype == torch.float64:
        exponent = torch.where(count > 0, scale_exponent(pivot, centred), exponent)
        centred *= power_of_two(-exponent)
    mean = torch.where(count > 0, pivot + offset, torch.zeros_like(pivot))
    return torch.stack([count, bad.sum(), exponent]), mean, centred
