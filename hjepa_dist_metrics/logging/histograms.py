"""Histograms of tensors over edges that never change, many tensors in a few kernels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hjepa_dist_metrics.logging.host_copy import HostCopy
from hjepa_dist_metrics.values import Histogram

_CHUNK = 1 << 22
# Devices where starting a kernel costs more than it does: there many tensors are counted at once.
_AT_ONCE: tuple[str, ...] = ("cuda",)
_PER_DECADE = 10
_LOWEST, _HIGHEST = -8, 4  # powers of ten


def signed_log_edges() -> npt.NDArray[np.float64]:
    """Return edges that suit weights and gradients of any scale: 10 bins a decade on both sides of zero.

    From -1e4 to -1e-8, one bin round zero, and from 1e-8 to 1e4: 242 edges. Larger magnitudes fall into the
    outermost bins.
    """
    magnitudes = 10.0 ** (np.arange(_LOWEST * _PER_DECADE, _HIGHEST * _PER_DECADE + 1) / _PER_DECADE)
    return np.concatenate([-magnitudes[::-1], magnitudes])


@dataclass
class _Counted:
    names: list[str]
    counts: HostCopy
    moments: HostCopy


class TensorHistograms:
    """Take the histograms of tensors now; `values` returns them, perhaps after waiting for the device.

    On CUDA they are counted where the tensors are, so that only counts travel; on the host the tensors are
    copied and counted by whoever asks for `values`: the writing thread.
    """

    def __init__(self, tensors: Mapping[str, Tensor], edges: npt.NDArray[np.float64] | None = None) -> None:
        self._edges = signed_log_edges() if edges is None else np.asarray(edges, dtype=np.float64)
        self._copies: dict[str, HostCopy] = {}
        self._counted: list[_Counted] = []
        by_device: dict[torch.device, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if tensor.device.type == "cuda":
                by_device.setdefault(tensor.device, {})[name] = tensor.detach()
            else:
                self._copies[name] = HostCopy(tensor)
        self._counted += [self._count(here) for here in by_device.values()]

    def values(self) -> dict[str, Histogram]:
        """Return one histogram a tensor."""
        host = {name: copy.wait() for name, copy in self._copies.items()}
        counted = [*self._counted, *([self._count(host)] if host else [])]
        return {name: histogram for part in counted for name, histogram in self._read(part)}

    def _count(self, tensors: Mapping[str, Tensor]) -> _Counted:
        flat = [tensor.reshape(-1) for tensor in tensors.values()]
        counts, moments = count_tensors(flat, self._edges)
        return _Counted(list(tensors), HostCopy(counts), HostCopy(moments))

    def _read(self, part: _Counted) -> Iterator[tuple[str, Histogram]]:
        counts, moments = part.counts.wait().numpy(), part.moments.wait().numpy()
        for name, row, (low, high, total, squares) in zip(part.names, counts, moments, strict=True):
            bins, nonfinite = row[:-1].copy(), int(row[-1])
            if not bins.any():
                low = high = 0.0
            yield name, Histogram(self._edges, bins, low, high, total, squares, nonfinite)


def count_tensors(flat: list[Tensor], edges: npt.NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    """Return counts int64 [P, bins + 1] and moments float64 [P, 4] of P flat tensors on one device.

    The last count is that of NaN and infinities, which are in no bin. The moments are minimum, maximum, sum
    and sum of squares of the finite values. The host does not wait for the device.
    """
    device = flat[0].device
    bins = len(edges) - 1
    if device.type not in _AT_ONCE:
        pairs = [_count_on_host(tensor, torch.from_numpy(edges)) for tensor in flat]
        return torch.stack([counts for counts, _ in pairs]), torch.stack([moments for _, moments in pairs])
    limits = torch.from_numpy(edges).to(device, non_blocking=True)
    counts = torch.zeros(len(flat) * (bins + 1), dtype=torch.int64, device=device)
    moments = torch.zeros((len(flat), 4), dtype=torch.float64, device=device)
    moments[:, 0], moments[:, 1] = float("inf"), float("-inf")
    for owners, sizes, values in _chunks(flat):
        owner = torch.repeat_interleave(_index(owners, device), _index(sizes, device), output_size=sum(sizes))
        finite = torch.isfinite(values)
        index = (torch.bucketize(values, limits, right=True) - 1).clamp(0, bins - 1)
        index = torch.where(finite, index, bins) + owner * (bins + 1)
        counts.index_add_(0, index, torch.ones_like(index))
        kept = values.masked_fill(~finite, 0.0)
        low = values.masked_fill(~finite, float("inf"))
        high = values.masked_fill(~finite, float("-inf"))
        moments[:, 0].scatter_reduce_(0, owner, low, "amin")
        moments[:, 1].scatter_reduce_(0, owner, high, "amax")
        moments[:, 2].index_add_(0, owner, kept)
        moments[:, 3].index_add_(0, owner, kept * kept)
    return counts.view(len(flat), bins + 1), moments


def _count_on_host(tensor: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
    """Return one tensor's row of each; on the host one tensor after the other is the fastest."""
    values = kept = tensor.double()
    low, high = _range(kept)
    if not math.isfinite(low + high):  # looking at the extremes is a hundredth of looking at every element
        kept = values[torch.isfinite(values)]
        low, high = _range(kept)
    bins = len(limits) - 1
    index = (torch.bucketize(kept, limits, right=True) - 1).clamp_(0, bins - 1)
    nonfinite = torch.tensor([values.numel() - kept.numel()], device="cpu")
    moments = [low, high, float(kept.sum()), float(kept @ kept)]
    return (
        torch.cat([torch.bincount(index, minlength=bins), nonfinite]),
        torch.tensor(moments, dtype=torch.float64, device="cpu"),
    )


def _range(values: Tensor) -> tuple[float, float]:
    """Return minimum and maximum, NaN where any value is; infinite bounds of nothing."""
    if not values.numel():
        return math.inf, -math.inf
    low, high = torch.aminmax(values)
    return float(low), float(high)


def _chunks(flat: list[Tensor]) -> Iterator[tuple[list[int], list[int], Tensor]]:
    """Yield owners, sizes and float64 values of stretches of bounded size."""
    owners: list[int] = []
    pieces: list[Tensor] = []
    size = 0
    for owner, tensor in enumerate(flat):
        for piece in torch.split(tensor, _CHUNK):
            if size + piece.numel() > _CHUNK and pieces:
                yield owners, [p.numel() for p in pieces], torch.cat([p.double() for p in pieces])
                owners, pieces, size = [], [], 0
            owners.append(owner)
            pieces.append(piece)
            size += piece.numel()
    if size:
        yield owners, [p.numel() for p in pieces], torch.cat([p.double() for p in pieces])


def _index(numbers: list[int], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device="cpu").to(device, non_blocking=True)
