"""Fingerprints of batches: equal inputs have equal ones, on every rank and device, without a wait for any."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.parallel.sharding.placement import is_dense, local_piece
from hjepa_dist_metrics.states.base import to_device
from hjepa_dist_metrics.states.sketches.hashing import mix

# A batch is looked through until this many tensors or this many objects have been met.
_MOST_TENSORS = 8
_MOST_OBJECTS = 256
# Of a larger tensor this many elements are read, one at a random place of each of as many equal stretches.
_SAMPLE = 1 << 14
# Inputs of fewer elements may well be equal by chance.
_FEWEST = 16
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def inputs_of(batch: Any) -> list[Tensor]:
    """Return the inputs among a batch's tensors, as integers of the same bits; [] where there are none.

    A batch is a tensor, or mappings, sequences and dataclasses of them in any nesting. The inputs are the
    tensors with at least half as many elements as the largest one: images without their labels, tokens
    together with their masks.
    """
    tensors = [tensor for _, tensor in zip(range(_MOST_TENSORS), _tensors(batch), strict=False)]
    most = max((tensor.numel() for tensor in tensors), default=0)
    return [_bits(tensor) for tensor in tensors if 2 * tensor.numel() >= most]


def fingerprint(inputs: Sequence[Tensor]) -> Tensor:
    """Return an int64 0-d key of the inputs' shapes, types and sampled elements."""
    return torch.stack(_together([_key(bits, place) for place, bits in enumerate(inputs)])).sum()


def is_constant(inputs: Sequence[Tensor]) -> Tensor:
    """Return whether each of the inputs holds one value only, bool 0-d on their device."""
    return torch.stack(_together([_is_one_value(bits) for bits in inputs])).all()


def _together(numbers: Sequence[Tensor]) -> list[Tensor]:
    """Return numbers on one device, that of the first one which is not on the host."""
    device = next((number.device for number in numbers if not number.is_cpu), numbers[0].device)
    return [to_device(number, device) if number.device != device else number for number in numbers]


def _tensors(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch in their order, those without readable elements left out."""
    pending, met = [batch], 0
    while pending and met < _MOST_OBJECTS:
        item, met = pending.pop(), met + 1
        if not isinstance(item, Tensor):
            pending += reversed(_parts(item))
        elif is_dense(item) and item.numel():
            yield item


def _parts(item: Any) -> list[Any]:
    if isinstance(item, Mapping):
        return list(item.values())[:_MOST_OBJECTS]
    if isinstance(item, (tuple, list)):
        return list(item[:_MOST_OBJECTS])
    if is_dataclass(item) and not isinstance(item, type):
        return [getattr(item, field.name, None) for field in fields(item)]
    return []


def _bits(tensor: Tensor) -> Tensor:
    plain = local_piece(tensor).as_subclass(Tensor)
    if plain.is_complex():
        plain = torch.view_as_real(plain.resolve_conj())
    return plain.resolve_neg().view(_INTEGERS[plain.element_size()])


def _key(bits: Tensor, place: int) -> Tensor:
    """Return a key of the input at a place: a sum over its sample, each element weighted by its own place."""
    places, factors = _sample_of(bits.numel(), bits.device)
    sample = bits.reshape(-1) if places is None else torch.take(bits, places)
    kind = zlib.crc32(f"{place} {bits.dtype} {list(bits.shape)}".encode()) << 31
    return (sample.to(torch.int64) * factors).sum() * (2 * place + 1) + kind


def _is_one_value(bits: Tensor) -> Tensor:
    if bits.numel() < _FEWEST:
        return torch.zeros((), dtype=torch.bool, device=bits.device)
    places, _ = _sample_of(bits.numel(), bits.device)
    if bits.is_cpu and places is not None:  # the sample nearly always tells, for a fraction of the time
        low, high = torch.aminmax(torch.take(bits, places))
        if low != high:
            return torch.zeros((), dtype=torch.bool, device="cpu")
    low, high = torch.aminmax(bits)
    return low == high


@functools.lru_cache(maxsize=8)
def _sample_of(size: int, device: torch.device) -> tuple[Tensor | None, Tensor]:
    """Return the places to read of `size` elements, None for all of them, and odd factors for the sum."""
    count = min(size, _SAMPLE)
    numbers = torch.arange(count, dtype=torch.int64, device=device)
    factors = mix(numbers, 2) | 1
    if count == size:
        return None, factors
    stretch = size // count
    return numbers * stretch + mix(numbers, 3) % stretch, factors
