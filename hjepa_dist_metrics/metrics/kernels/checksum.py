"""Exact checksums of tensors: equal bits have equal keys, on every rank, in one read and without a wait."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hjepa_dist_metrics.metrics.kernels.flat_tensors import split_by_size
from hjepa_dist_metrics.states.base import moved, to_device
from hjepa_dist_metrics.states.sketches.hashing import mix

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Large tensors are added up in rows of so many words of 8 bytes before anything is mixed.
_ROW = 256


class Checksums:
    """Compute a key for each of some tensors of fixed sizes, int64 [n] on the device of the first.

    A key depends on the tensor's bits and on their order, in large tensors on the order of rows of 2 KiB.
    Keys of -0 and 0 differ, and those of different NaN.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.count = len(tensors)
        self._device = tensors[0].device if tensors else torch.device("cpu")
        self._small, self._large = split_by_size(tensors)
        lengths = [_bits(tensors[i]).numel() for i in self._small]
        lengths += [rows + bool(rest) for rows, rest in (_rows(_bits(tensors[i])) for i in self._large)]
        owners, counts = (
            torch.tensor(numbers, dtype=torch.int64, device="cpu")
            for numbers in ([*self._small, *self._large], lengths)
        )
        places = torch.arange(sum(lengths), dtype=torch.int64, device="cpu")
        self._owners = to_device(owners.repeat_interleave(counts), self._device)
        self._factors = to_device(mix(places, 1) | 1, self._device)

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the keys of tensors of the sizes that were given, detached and dense."""
        device = self._device
        words = [moved(_bits(tensors[i]).reshape(-1), device) for i in self._small]
        words = [torch.cat(words).to(torch.int64)] if words else []
        words += [moved(part, device) for i in self._large for part in _sums(_bits(tensors[i]))]
        keys = torch.zeros(self.count, dtype=torch.int64, device=device)
        return mix(keys.index_add(0, self._owners, torch.cat(words) * self._factors), 2) if words else keys


def _bits(tensor: Tensor) -> Tensor:
    plain = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return plain.resolve_neg().view(_INTEGERS[plain.element_size()])


def _rows(bits: Tensor) -> tuple[int, int]:
    """Return how many whole rows a large tensor has, and how many elements are left."""
    return divmod(bits.numel(), _ROW * 8 // bits.element_size())


def _sums(bits: Tensor) -> list[Tensor]:
    """Return the sums of the whole rows, as words of 8 bytes, and that of the elements that are left."""
    flat = bits.reshape(-1)
    if flat.storage_offset() * flat.element_size() % 8:  # words of 8 bytes must lie at multiples of 8
        flat = flat.clone()
    rows, rest = _rows(bits)
    end = flat.numel() - rest
    parts = [flat[:end].view(torch.int64).view(rows, _ROW).sum(dim=1)]
    return [*parts, flat[end:].sum(dtype=torch.int64).reshape(1)] if rest else parts
