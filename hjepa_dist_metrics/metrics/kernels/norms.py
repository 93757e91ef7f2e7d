"""Sums of squares of tensors: in float32 at least, exact to about 1e-8, without waiting for the device.

On the host a tensor is read as rows of 1,024 elements. The norm of a row is one float32 number, made by
torch's own kernel; its square and everything beyond are float64. No BLAS takes part: how many partial sums
its dot product makes, and so how exact it is, differs from processor to processor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hjepa_dist_metrics.metrics.kernels.flat_tensors import SMALL, joined_sums, split_by_size

# Elements that a pass over the host's memory takes at once, so that what it writes stays in the cache.
BLOCK = 1 << 17
# Elements that are added up in float32: an error of 1e-6 at most, of equal elements, 2e-9 of random ones.
ROW = 1024
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
    norms = [row for block in _joined_blocks(tensors) for row in row_norms(block)]
    return _sum_of_squares(norms)


def row_norms(flat: Tensor) -> list[Tensor]:
    """Return the norms of the rows of ROW elements, and of what is left, each [m] of the tensor's dtype."""
    whole = flat.numel() // ROW * ROW
    found = [torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1)] if whole else []
    return [*found, torch.linalg.vector_norm(flat[whole:])[None]] if whole < flat.numel() else found


def _sum_of_squares(norms: Sequence[Tensor]) -> Tensor:
    return torch.cat([norm.to(torch.float64) for norm in norms]).square_().sum()


def _joined_blocks(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield all elements in flat blocks of float32 or float64, small tensors joined to one.

    The norm of each of a hundred biases would cost ten times their copy.
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
    if flat.dtype in _WIDE:
        yield flat
    else:
        for block in torch.split(flat, BLOCK):
            yield block.to(torch.float32)


def square_sums(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return the sum of squares of each tensor, float64 [n] on `device`; all lie there."""
    if not tensors:
        return torch.zeros(0, dtype=torch.float64, device=device)
    if device.type != "cpu":
        return torch.stack([square_sum([tensor], device) for tensor in tensors])
    total = torch.zeros(len(tensors), dtype=torch.float64, device="cpu")
    small, large = split_by_size(tensors)
    if small:
        total[torch.tensor(small, device="cpu")] = joined_sums([tensors[i] for i in small])[1]
    for index in large:
        norms = [row for block in _wide_blocks(tensors[index]) for row in row_norms(block)]
        total[index] = _sum_of_squares(norms)
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
