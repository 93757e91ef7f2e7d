"""Many small host tensors as one: joined, and reduced stretch by stretch.

A kernel's call takes as long as its work on thousands of elements. A model's hundred biases and norms cost
one pass where they lie end to end, and a hundred calls where they do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array: TypeAlias = npt.NDArray[Any]

# Up to here a tensor is joined with others: the calls for it alone would take longer than its copy.
SMALL = 1 << 14
_MOST_JOINED = 1 << 16  # what the cache holds, in float64


def split_by_size(tensors: Sequence[Tensor]) -> tuple[list[int], list[int]]:
    """Return the places of the small tensors, empty ones left out, and of the large ones."""
    small = [i for i, tensor in enumerate(tensors) if 0 < tensor.numel() <= SMALL]
    return small, [i for i, tensor in enumerate(tensors) if tensor.numel() > SMALL]


def chunks(sizes: Sequence[int], most: int = _MOST_JOINED) -> Iterator[tuple[int, int]]:
    """Cut tensors of these sizes into runs, [start, stop), of at most `most` elements or of one tensor."""
    start, held = 0, 0
    for index, size in enumerate(sizes):
        if held and held + size > most:
            yield start, index
            start, held = index, 0
        held += size
    if sizes:
        yield start, len(sizes)


class FlatTensors:
    """Hold host tensors, none of them empty, end to end in one vector of `dtype`, the object's own."""

    def __init__(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> None:
        self.values: Array = flatten(tensors).to(dtype).numpy()
        self.sizes: Array = np.array([tensor.numel() for tensor in tensors])
        self._starts = np.cumsum(self.sizes) - self.sizes

    def sums(self, values: Array) -> Array:
        """Add up each tensor's stretch of `values`, in float64, which lie as the joined ones do."""
        with np.errstate(invalid="ignore"):  # infinities cancel to NaN: a finding, and no error
            return np.add.reduceat(values, self._starts, dtype=np.float64)

    def moments(self) -> tuple[Array, Array]:
        """Return the sum of each stretch and the norm of its deviations from its mean, in float64."""
        wide = self.values.astype(np.float64, copy=False)
        sums = self.sums(wide)
        means = np.where(np.isfinite(sums), sums, 0.0) / self.sizes
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            deviations = wide - np.repeat(means, self.sizes)
            offsets = self.sums(deviations)
            deviations *= deviations
            squares = self.sums(deviations)
            spreads = np.sqrt(np.maximum(squares - offsets * offsets / self.sizes, 0.0))
        return sums, np.where(np.isinf(squares), squares, spreads)

    def largest(self, values: Array) -> Array:
        """Return the largest of each stretch."""
        return np.maximum.reduceat(values, self._starts)

    def smallest(self, values: Array) -> Array:
        """Return the smallest of each stretch."""
        return np.minimum.reduceat(values, self._starts)


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Return all elements in one vector, a copy, of the dtype that holds them all."""
    if len(tensors) == 1 or len({tensor.dtype for tensor in tensors}) > 1:
        return torch.cat([tensor.reshape(-1) for tensor in tensors])
    # One call, where a `reshape` each would dominate. Of a single tensor it makes no copy.
    flat: Tensor = torch._utils._flatten_dense_tensors(tensors)  # type: ignore[no-untyped-call]
    return flat


def joined_sums(tensors: Sequence[Tensor]) -> Tensor:
    """Return sum and sum of squares of small tensors, none empty, in float64 throughout: float64 [2, n]."""
    found = []
    for start, stop in chunks([tensor.numel() for tensor in tensors]):
        joined = FlatTensors(tensors[start:stop], torch.float64)
        sums = joined.sums(joined.values)
        with np.errstate(over="ignore", under="ignore"):
            joined.values *= joined.values  # in place: fresh memory would take longer to get than to fill
        found.append(np.stack([sums, joined.sums(joined.values)]))
    return torch.from_numpy(np.concatenate(found, axis=1))
