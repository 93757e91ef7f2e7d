"""Scatter between and within classes: what a linear discriminant is made of, here with images as classes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from hjepa_dist_metrics.states.base import State, require_same_signature
from hjepa_dist_metrics.states.second_moments.covariance import Covariance
from hjepa_dist_metrics.states.second_moments.decompositions import discriminant_eigenvalues

_DELTA = 1e-4  # LiDAR's (2312.04000)
_MOST = 600  # an exponent beyond which delta is either nothing or all, and still has an inverse


class ClassScatter(State):
    """Keep the covariance of class means, `.between`, and the moments of rows about them, `.within`.

    `.spectrum()` are the eigenvalues of Sw^-1/2 Sb Sw^-1/2, where Sb is the covariance of the means and Sw
    the scatter within, over (rows - classes), plus 1e-4 on its diagonal.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.between, self.within = Covariance(dim), Covariance(dim)
        self._eigenvalues: Tensor | None = None

    @property
    def signature(self) -> str:
        """Describe kind and width."""
        return f"ClassScatter[{self.dim}]"

    def empty(self) -> ClassScatter:
        """Return the scatter of nothing."""
        return self._of(self.between.empty(), self.within.empty())

    def update(self, means: Tensor, has: Tensor | None, offsets: Tensor, valid: Tensor | None) -> None:
        """Add class means [B, D] and rows about their class's mean, [B, N, D].

        `has` [B] leaves classes out, `valid` [B, N] rows.
        """
        self.between.update(means, has)
        self.within.update(offsets, valid)
        self._eigenvalues = None

    def scaled(self) -> tuple[Tensor, Tensor | None, int]:
        """Return Sb and Sw of rows / 2^e, float64 [D, D] each, and e, which is 0 for rows of ordinary size.

        Sw is None where there are fewer than two classes or no class has two rows.
        """
        (between, up), (within, down) = self.between.scaled(), self.within.scaled()
        exponent = max(up, down)
        means = between.matrix * 2.0 ** (2 * (up - exponent))
        free = within.count - between.count
        if between.count < 2 or free < 1:
            return means, None, exponent
        return means, within.second_moment * (2.0 ** (2 * (down - exponent)) / free), exponent

    def spectrum(self) -> Tensor:
        """Return the eigenvalues, rising, [D]; NaN where a moment is not finite or there is no scatter.

        Of rows that are scaled they are those up to a factor, which no share of them has.
        """
        if self._eigenvalues is None:
            means, scatter, exponent = self.scaled()
            within = torch.full_like(means, float("nan")) if scatter is None else scatter
            delta = _DELTA * 2.0 ** float(np.clip(-2 * exponent, -_MOST, _MOST))
            self._eigenvalues = discriminant_eigenvalues(means, within, delta)
        return self._eigenvalues

    def merge(self, other: ClassScatter) -> ClassScatter:
        """Merge both covariances."""
        require_same_signature(self, other)
        return self._of(self.between.merge(other.between), self.within.merge(other.within))

    def pack(self) -> dict[str, Tensor]:
        """Return both covariances' tensors, as `between.mean` and so on."""
        return _joined({part: state.pack() for part, state in self._both.items()})

    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        parts = _parts(tensors)
        self.between = self.between.adopt(parts["between"])
        self.within = self.within.adopt(parts["within"])
        self._eigenvalues = None

    def compact(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keep the triangles of both."""
        return _joined({part: self._both[part].compact(own) for part, own in _parts(tensors).items()})

    def expand(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mirror the triangles of both."""
        return _joined({part: self._both[part].expand(own) for part, own in _parts(tensors).items()})

    @property
    def _both(self) -> dict[str, Covariance]:
        return {"between": self.between, "within": self.within}

    def _bare(self) -> ClassScatter:
        state = super()._bare()
        state.between, state.within = self.between._bare(), self.within._bare()
        return state

    def _of(self, between: Covariance, within: Covariance) -> ClassScatter:
        state = super()._bare()
        state.between, state.within, state._eigenvalues = between, within, None
        return state


def _joined(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{part}.{name}": tensor for part, own in parts.items() for name, tensor in own.items()}


def _parts(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {"between": {}, "within": {}}
    for name, tensor in tensors.items():
        part, _, own = name.partition(".")
        parts[part][own] = tensor
    return parts
