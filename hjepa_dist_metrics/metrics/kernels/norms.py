"""L2 norms of tensors of any scale: in float32 at least, exact to about 1e-8, without waiting for the device.

On the host a tensor is read as rows of 1,024 elements. The norm of a row is one float32 number, made by
torch's own kernel; everything beyond is float64. No BLAS takes part: how many partial sums its dot product
makes, and so how exact it is, differs from processor to processor. Where squares leave the range of the
elements' type, which the result shows, the norm is made again of scaled float64 elements. On other devices
squares are float64 at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hjepa_dist_metrics.metrics.kernels.flat_tensors import SMALL, joined_sums, split_by_size
from hjepa_dist_metrics.parallel.sharding.square_ranges import root_sum_square
from hjepa_dist_metrics.states.base import moved

# Elements that a pass over the host's memory takes at once, so that what it writes stays in the cache.
BLOCK = 1 << 17
# Elements that are added up in float32: an error of 1e-6 at most, of equal elements, 2e-9 of random ones.
ROW = 1024
_WIDE = (torch.float32, torch.float64)
# A norm of n elements is exact where it is at least this times sqrt(n): squares that are flushed to zero, of
# elements below the root of the type's smallest normal number, are then at most 1e-8 of its square.
_UNDERFLOW = {torch.float32: 1.1e-15, torch.float64: 1.5e-150}


def joint_norm(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return the norm over all elements of all tensors, float64 0-d on `device`; 0 of none.

    Half-precision values are widened first: their squares overflow, and their own norms are off.
    """
    norms: list[Tensor] = []
    host: list[Tensor] = []
    elsewhere: list[Tensor] = []
    for tensor in tensors:
        if tensor.numel():
            (host if tensor.is_cpu else elsewhere).append(tensor)
    if host:
        norms.append(moved(_host_norm(host), device))
    for group in alike(elsewhere):
        norms.append(moved(root_sum_square(_device_norms(group)), device))
    if len(norms) == 1:
        return norms[0]
    return (
        root_sum_square(torch.stack(norms)) if norms else torch.zeros((), dtype=torch.float64, device=device)
    )


def square_sum(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return the sum of squares over all tensors, float64 0-d on `device`; 0 of none."""
    return joint_norm(tensors, device).square()


def tensor_norms(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return the norm of each tensor, float64 [n] on `device`; all lie there."""
    if device.type != "cpu":
        each = [joint_norm([tensor], device) for tensor in tensors]
        return torch.stack(each) if each else torch.zeros(0, dtype=torch.float64, device=device)
    norms = [0.0] * len(tensors)
    small, large = split_by_size(tensors)
    if small:
        squares = joined_sums([tensors[i] for i in small])[1].tolist()
        for index, square in zip(small, squares, strict=True):
            norms[index] = square**0.5
        large += [index for index in small if _leaves_range(norms[index], [tensors[index]])]
    for index in large:
        norms[index] = float(_host_norm([tensors[index]]))
    return torch.tensor(norms, dtype=torch.float64, device="cpu")


def _device_norms(tensors: list[Tensor]) -> Tensor:
    """Return the norm of each tensor of one dtype, float64 [n], without asking their device."""
    if tensors[0].dtype != torch.float64:
        return torch.stack(torch._foreach_norm(tensors, 2.0, dtype=torch.float64))
    scales = power_of_two(torch.stack(torch._foreach_norm(tensors, float("inf"))))
    scaled = torch._foreach_div(tensors, list(scales.unbind()))
    return torch.stack(torch._foreach_norm(scaled, 2.0)) * scales


def power_of_two(peaks: Tensor) -> Tensor:
    """Return powers of two near float64 peaks, 1 where one is no number: dividing by them costs no digits."""
    usable = torch.isfinite(peaks) & (peaks > 0)
    exponent = torch.frexp(torch.where(usable, peaks, torch.ones_like(peaks))).exponent
    return torch.exp2(exponent.clamp(-1000, 1000).to(torch.float64))


def _host_norm(tensors: Sequence[Tensor]) -> Tensor:
    rows = torch.cat([row.to(torch.float64) for block in _joined_blocks(tensors) for row in row_norms(block)])
    total = rows.square_().sum().sqrt()
    return _scaled_norm(tensors) if _leaves_range(float(total), tensors) else total


def _leaves_range(norm: float, tensors: Sequence[Tensor]) -> bool:
    single = any(tensor.dtype != torch.float64 for tensor in tensors)
    floor = _UNDERFLOW[torch.float32 if single else torch.float64]
    elements = sum(tensor.numel() for tensor in tensors)
    return not floor * elements**0.5 <= norm < float("inf")


def _scaled_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the norm over host tensors of scaled float64 elements: finite where all elements are."""
    # An infinity norm would take fifteen times as long.
    ends = [torch.stack(torch.aminmax(tensor)).to(torch.float64) for tensor in tensors]
    peak = torch.stack(ends).abs().max()  # NaN wins
    if not 0 < float(peak) < float("inf"):
        return peak
    scale = power_of_two(peak)
    blocks = [part for tensor in tensors for part in torch.split(tensor.reshape(-1), BLOCK)]
    norms = [torch.linalg.vector_norm(block.to(torch.float64) / scale) for block in blocks]
    return root_sum_square(torch.stack(norms)) * scale


def row_norms(flat: Tensor) -> list[Tensor]:
    """Return the norms of the rows of ROW elements, and of what is left, each [m] of the tensor's dtype."""
    whole = flat.numel() // ROW * ROW
    found = [torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1)] if whole else []
    return [*found, torch.linalg.vector_norm(flat[whole:])[None]] if whole < flat.numel() else found


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


def scale_(tensors: Sequence[Tensor], coefficient: Tensor) -> None:
    """Multiply every tensor by a 0-d float64 coefficient, in place."""
    for group in alike([t for t in tensors if t.numel()]):
        wide = torch.float64 if group[0].dtype == torch.float64 else torch.float32
        torch._foreach_mul_(group, moved(coefficient, group[0].device, wide))


def alike(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Group tensors by device and dtype, in order: what foreach kernels take together."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return list(groups.values())
