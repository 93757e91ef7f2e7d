"""A processor whose BLAS is as inexact as any: dot products in four accumulators of the inputs' precision.

How many partial sums a dot product makes depends on the processor, and its error with it: 1e-7 here is 4e-6
elsewhere. What holds under this mode holds on every processor.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

LANES = 4


def lanes_sum(products: np.ndarray) -> np.ndarray:
    """Add up the first axis in four running sums of the array's dtype."""
    short = -len(products) % LANES
    padded = np.concatenate([products, np.zeros((short, *products.shape[1:]), products.dtype)])
    return np.add.reduce(padded.reshape(-1, LANES, *products.shape[1:]), axis=0).sum(axis=0)


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return a @ b of 1-d and 2-d tensors."""
    left, right = np.atleast_2d(a.detach().numpy()), b.detach().numpy()
    right = right if b.dim() == 2 else right[:, None]
    rows = [lanes_sum(row[:, None] * right) for row in left]
    result = np.stack(rows) if rows else np.zeros((0, right.shape[1]), right.dtype)
    shape = (*a.shape[: a.dim() - 1], *b.shape[1:])
    return torch.from_numpy(result.reshape(shape))


class FourAccumulators(TorchFunctionMode):
    """Replace products of vectors and matrices of floats on the host."""

    calls = frozenset(
        getattr(owner, name)
        for owner in (torch, torch.Tensor)
        for name in ("dot", "vdot", "inner", "mv", "mm", "matmul", "__matmul__", "__rmatmul__")
        if hasattr(owner, name)
    )

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self.calls and self.replaces(*args[:2]):
            a, b = args[:2] if func is not torch.Tensor.__rmatmul__ else args[1::-1]
            found = product(a, b)
            return kwargs["out"].copy_(found) if "out" in kwargs else found
        return func(*args, **kwargs)

    @staticmethod
    def replaces(*pair: object) -> bool:
        return all(
            type(x) is torch.Tensor
            and x.is_cpu
            and 1 <= x.dim() <= 2
            and x.dtype in (torch.float32, torch.float64)
            and not x.requires_grad
            for x in pair
        )
