"""Count, mean and centred second moments of rows, merged after Chan et al. (1983) in float64.

Batches are shifted by one of their own rows before anything is squared, as in `moments.py`.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.states.base import State, as_tensor, follow, require_same_signature
from hjepa_dist_metrics.states.decompositions import symmetric_eigenvalues
from hjepa_dist_metrics.states.rows import blocks, row_weights

_MOST_KEPT = 1024  # whose triangle's places take 8 MB


class Covariance(State):
    """Keep `.count`, `.mean` [D] and the centred second moment of rows: `.matrix` = M2 / (n - 1), [D, D].

    What a sync sends is the triangle: it does not depend on the number of rows.
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ConfigError(f"a covariance needs at least one dimension, got dim={dim}")
        self.dim = dim
        self._load(self._blank())
        self._fresh = True

    def _blank(self) -> dict[str, Tensor]:
        return {
            "head": _zeros(2),
            "mean": _zeros(self.dim),
            "m2": _zeros(self.dim, self.dim),
        }

    @property
    def signature(self) -> str:
        """Describe kind and width."""
        return f"Covariance[{self.dim}]"

    def empty(self) -> Covariance:
        """Return a covariance of nothing."""
        state = self.adopt(self._blank())
        state._fresh = True
        return state

    def pack(self) -> dict[str, Tensor]:
        """Return count and nonfinite rows (`head`), `mean` and `m2`."""
        return {"head": self.head, "mean": self._mean, "m2": self.m2}

    def _load(self, tensors: dict[str, Tensor]) -> None:
        self.head, self._mean, self.m2 = (tensors[name].to(torch.float64) for name in ("head", "mean", "m2"))
        self._eigenvalues: dict[str, Tensor] = {}
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
    def matrix(self) -> Tensor:
        """Return the unbiased covariance, float64 [D, D]; zeros of one row."""
        return self.m2 / (self.head[0] - 1).clamp(min=1)

    @property
    def second_moment(self) -> Tensor:
        """Return the uncentred sum of x x^T, float64 [D, D]."""
        return self.m2 + self.head[0] * torch.outer(self._mean, self._mean)

    def spectrum(self, of: str = "matrix") -> Tensor:
        """Return the eigenvalues of `matrix` or `second_moment`, rising, [D]; NaN where that is not finite.

        They are worked out once, at the first call.
        """
        if of not in self._eigenvalues:
            self._eigenvalues[of] = symmetric_eigenvalues(getattr(self, of))
        return self._eigenvalues[of]

    def update(self, rows: Tensor, valid: Tensor | None = None) -> None:
        """Fold rows [..., D] in; `valid` [...] leaves rows out."""
        rows = as_tensor(rows, self.m2.device)
        if rows.ndim < 1 or rows.shape[-1] != self.dim:
            raise ConfigError(f"expected rows of width {self.dim}, got shape {list(rows.shape)}")
        weight = None if valid is None else row_weights(valid, rows.shape[:-1], rows.device)
        self.head, self._mean, self.m2 = (follow(t, rows) for t in (self.head, self._mean, self.m2))
        for block, mask in blocks(rows.reshape(-1, self.dim), weight):
            seen = _block_covariance(block.to(torch.float64), mask)
            self._load(seen if self._fresh else self.merge(self.adopt(seen)).pack())

    def merge(self, other: Covariance) -> Covariance:
        """Merge about the common mean (Chan)."""
        require_same_signature(self, other)
        theirs = {name: follow(tensor, self.m2) for name, tensor in other.pack().items()}
        n, m = self.head[0], theirs["head"][0]
        total = n + m
        delta = torch.where(n > 0, theirs["mean"] - self._mean, theirs["mean"])
        delta = torch.where(m > 0, delta, torch.zeros_like(delta))
        mean = torch.where(n > 0, self._mean, torch.zeros_like(delta)) + delta * (m / total.clamp(min=1))
        m2 = self.m2 + theirs["m2"] + self._product(delta) * (n * m / total.clamp(min=1))
        return self.adopt({"head": self.head + theirs["head"], "mean": mean, "m2": m2})

    def _product(self, delta: Tensor) -> Tensor:
        """Return delta delta^T in the form of the moments, a matrix or its triangle."""
        if self.m2.ndim == 2:
            return torch.outer(delta, delta)
        upper = _triangle(self.dim)
        return delta[upper[0]] * delta[upper[1]]

    def compact(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keep the triangle of the moments."""
        if tensors["m2"].ndim == 1:
            return tensors
        upper = _triangle(self.dim)
        return {**tensors, "m2": tensors["m2"][upper[0], upper[1]]}

    def expand(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mirror the triangle."""
        upper, m2 = _triangle(self.dim), _zeros(self.dim, self.dim)
        m2[upper[0], upper[1]] = tensors["m2"]
        m2[upper[1], upper[0]] = tensors["m2"]
        return {**tensors, "m2": m2}


def _triangle(dim: int) -> Tensor:
    """Return the places on and above the diagonal, int64 [2, D (D + 1) / 2]."""
    return _kept_triangle(dim) if dim <= _MOST_KEPT else torch.triu_indices(dim, dim, device="cpu")


@functools.lru_cache(maxsize=4)
def _kept_triangle(dim: int) -> Tensor:
    return torch.triu_indices(dim, dim, device="cpu")


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device="cpu")


def _block_covariance(rows: Tensor, valid: Tensor | None) -> dict[str, Tensor]:
    """Return the moments of float64 rows [n, D], with as few passes over them as can be.

    A row's sum is nonfinite where one of its elements is, and so is a column's: matrix-vector products find
    them in a tenth of the time that it takes to look at every element.
    """
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
    mean = torch.where(count > 0, pivot + offset, torch.zeros_like(pivot))
    return {"head": torch.stack([count, bad.sum()]), "mean": mean, "m2": centred.T @ centred}
