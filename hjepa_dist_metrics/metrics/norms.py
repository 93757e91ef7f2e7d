"""Sums of squares of tensors: in float32 at least, exact to about 1e-8, without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hjepa_dist_metrics.metrics.stretches import SMALL

# Largest block that one float32 dot product adds up: an error of about 2e-8, and it stays in the cache.
BLOCK = 1 << 17
# A dot product adds up several partial sums, so that twice the block costs no digits that matter: 6e-8.
_DOT_BLOCK = 1 << 18
_WIDE = (torch.float32, torch.float64)


def square_sum(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return the sum of squares over all tensors, float64 0-d on `device`; 0 of none.

    Half-precision values are widened first: their squares overflow, and their own norms are off.
    """
    total = torch.zeros((), dtype=torch.float64, device=device)
    host: list[Tensor] = []
    elsewhere: list[Tensor] = []
    for tensor in tensors:
        if tensor.numel():
            (host if tensor.is_cpu else elsewhere).append(tensor)
    if host:
        total = total + _host_square_sum(host).to(device, non_blocking=True)
    for group in alike(elsewhere):
        wide = torch.float64 if group[0].dtype == torch.float64 else torch.float32
        norms = torch.stack(torch._foreach_norm(group, 2.0, dtype=wide)).to(torch.float64)
        total = total + (norms * norms).sum().to(device, non_blocking=True)
    return total


def _host_square_sum(tensors: Sequence[Tensor]) -> Tensor:
    """Add up dot products of blocks: as fast as a norm, and the error does not grow with the size."""
    parts: dict[torch.dtype, list[Tensor]] = {}
    for block in _joined_blocks(tensors):
        parts.setdefault(block.dtype, []).append(torch.dot(block, block))
    return torch.stack([torch.stack(dots).sum(dtype=torch.float64) for dots in parts.values()]).sum()


def _joined_blocks(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield all elements in flat blocks of float32 or float64, small tensors joined to one.

    A dot product of each of a hundred biases would cost ten times their copy.
    """
    small: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel() <= SMALL:
            small.setdefault(tensor.dtype, []).append(tensor.reshape(-1))
        else:
            yield from _wide_blocks(tensor)
    for flat in small.values():
        yield from _wide_blocks(torch.cat(flat))


def _wide_blocks(tensor: Tensor) -> Iterator[Tensor]:
    flat = tensor.reshape(-1)
    for block in (flat,) if flat.numel() <= _DOT_BLOCK else torch.split(flat, _DOT_BLOCK):
        yield block if block.dtype in _WIDE else block.to(torch.float32)


def square_sums(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return the sum of squares of each tensor, float64 [n] on `device`; all lie there."""
    if not tensors:
        return torch.zeros(0, dtype=torch.float64, device=device)
    if device.type != "cpu":
        return torch.stack([square_sum([tensor], device) for tensor in tensors])
    dots: dict[torch.dtype, list[Tensor]] = {}
    owners: dict[torch.dtype, list[int]] = {}
    for index, tensor in enumerate(tensors):
        small = tensor.numel() <= _DOT_BLOCK and tensor.dtype in _WIDE
        for block in (tensor.reshape(-1),) if small else _wide_blocks(tensor):
            dots.setdefault(block.dtype, []).append(torch.dot(block, block))
            owners.setdefault(block.dtype, []).append(index)
    total = torch.zeros(len(tensors), dtype=torch.float64, device="cpu")
    for dtype, parts in dots.items():
        total.index_add_(0, torch.tensor(owners[dtype], device="cpu"), torch.stack(parts).to(torch.float64))
    return total


def scale_(tensors: Sequence[Tensor], coefficient: Tensor) -> None:
    """Multiply every tensor by a 0-d coefficient, in place."""
    for group in alike([t for t in tensors if t.numel()]):
        torch._foreach_mul_(group, coefficient.to(group[0].device, non_blocking=True))


def alike(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Group tensors by device and dtype, in order: what foreach kernels take together."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return list(groups.values())
