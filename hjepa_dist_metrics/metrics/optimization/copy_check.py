"""Compare over ranks, once, the gradients that count as copies of each other where no layout is declared."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hjepa_dist_metrics.errors import DesyncError
from hjepa_dist_metrics.metrics.kernels.norms import tensor_norms
from hjepa_dist_metrics.metrics.optimization.declarations import declare_experts, declare_stages, rank_list
from hjepa_dist_metrics.metrics.optimization.tracked_parameters import TrackedParameters
from hjepa_dist_metrics.parallel import ProcessContext
from hjepa_dist_metrics.parallel.collectives import all_gather_tensors
from hjepa_dist_metrics.parallel.reduction import norm_over_shards, resolve_partial
from hjepa_dist_metrics.parallel.sharding.parameter_shards import ParameterShard
from hjepa_dist_metrics.parallel.sharding.placement import is_dtensor

# Copies differ by rounding at most, also where each rank computes its own in bfloat16.
_TOLERANCE = 1e-3
# Once some are no copies, those that are the same to this are.
_SAME = 1e-6


Rows = npt.NDArray[np.float64]
# Takes this rank's row of numbers, returns those of all ranks that take part, and their ranks.
Gather = Callable[[Rows], tuple[Rows, Sequence[int]]]


def gather_over(context: ProcessContext | None, device: torch.device) -> Gather:
    """Return a gather over the ranks of a context, by one collective of the training's own group."""

    def gather(row: Rows) -> tuple[Rows, Sequence[int]]:
        here = context or ProcessContext.current()
        place = torch.device("cpu") if here.channel is not None else device
        rows = all_gather_tensors(torch.from_numpy(row).to(place), here)
        return rows.cpu().numpy(), range(here.world_size)

    return gather


class CopyCheck:
    """Raise where ranks hold different parameters, or different gradients of what would count as copies.

    A collective call at the first time over the ranks of `context`, by `gather`, and nothing afterwards.
    """

    def __init__(
        self, watched: TrackedParameters, context: ProcessContext | None, gather: Gather | None = None
    ) -> None:
        self._watched, self._context = watched, context
        self._gather = gather or gather_over(context, watched.slots[0].parameter.device)
        self._done = False

    def __call__(self) -> None:
        """Compare names, shapes and norms. DesyncError, the same on every rank, where they differ."""
        if self._done or self._is_alone():
            return
        self._done = True
        self.require_same_parameters()
        rows, ranks = self._gather(self._whole_norms().cpu().numpy())
        _require_same_norms(self._watched, rows, ranks)

    def _is_alone(self) -> bool:
        here = self._context or ProcessContext.current()
        return here.world_size == 1 or not here.is_member

    def require_same_parameters(self) -> None:
        """Compare names and shapes alone. A collective call. DesyncError where they differ."""
        if self._is_alone():
            return
        own = [_described(slot) for slot in self._watched.slots]
        text = "\n".join(own).encode()
        digest = int.from_bytes(hashlib.sha256(text).digest()[:6], "big")  # what a float64 holds
        rows, ranks = self._gather(np.array([digest, len(text)], dtype=np.float64))
        if len(set(rows[:, 0])) == 1:
            return
        padded = np.zeros(int(rows[:, 1].max()))
        padded[: len(text)] = np.frombuffer(text, dtype=np.uint8)
        sent, _ = self._gather(padded)
        sizes = rows[:, 1].astype(int)
        texts = [
            row[:size].astype(np.uint8).tobytes().decode() for row, size in zip(sent, sizes, strict=True)
        ]
        _raise_different([text.split("\n") for text in texts], rows[:, 0].tolist(), ranks)

    def _whole_norms(self) -> Tensor:
        """Return the norm of each parameter's whole gradient, 0 without one, float64 [slots]."""
        slots = self._watched.slots
        device = slots[0].parameter.device
        pairs = [slot.gradient() for slot in slots]
        pieces = resolve_partial([pair for pair in pairs if pair is not None])
        places = [index for index, pair in enumerate(pairs) if pair is not None]
        norms = torch.zeros(len(slots), dtype=torch.float64, device=device)
        index = torch.tensor(places, dtype=torch.int64, device="cpu").to(device)
        norms.index_copy_(0, index, tensor_norms(pieces, device))
        return norm_over_shards(norms, [slot.layout.shards for slot in slots])


def _described(slot: ParameterShard) -> str:
    """Return a parameter's name and shape, without the latter where it is that of FSDP1's shard."""
    own_shape = slot.span is not None or (slot.layout.shards and not is_dtensor(slot.parameter))
    return slot.name if own_shape else f"{slot.name} {list(slot.parameter.shape)}"


def _raise_different(lists: Sequence[Sequence[str]], digests: Sequence[float], ranks: Sequence[int]) -> None:
    other = next(index for index, digest in enumerate(digests) if digest != digests[0])
    holder, lacking = (0, other) if set(lists[0]) - set(lists[other]) else (other, 0)
    extra = [name for name in lists[holder] if name not in set(lists[lacking])]
    what = f"rank {ranks[holder]} has {extra[0]!r}" if extra else f"rank {ranks[holder]} has another order"
    raise DesyncError(
        f"the ranks hold different parameters: {what}, rank {ranks[lacking]} has not. Nothing was scaled.\n"
        + declare_stages(_classes(digests, ranks))
    )


def _require_same_norms(watched: TrackedParameters, norms: Rows, ranks: Sequence[int]) -> None:
    """Raise where a column of `norms` [ranks, parameters] is not one number, but for what is not finite."""
    finite = np.isfinite(norms) | ~np.isfinite(norms).any(axis=0)
    norms = np.where(np.isfinite(norms), norms, 0.0)
    highest = np.where(finite, norms, -np.inf).max(axis=0)
    lowest = np.where(finite, norms, np.inf).min(axis=0)
    if not (highest > lowest + _TOLERANCE * highest).any():
        return
    differing = np.flatnonzero(highest > lowest + _SAME * highest).tolist()
    names = [slot.name for slot in watched.slots]
    first = differing[0]
    values = dict(zip(ranks, norms[:, first].tolist(), strict=True))
    classes = _classes(_rounded(norms[:, first]), ranks)
    shown = "; ".join(f"{values[alike[0]]:.6g} on {rank_list(alike)}" for alike in classes)
    same = [name for index, name in enumerate(names) if index not in set(differing)]
    raise DesyncError(
        f"the gradients of {len(differing)} of {len(names)} parameters differ between ranks that would count "
        f"as copies of each other: the norm of {names[first]!r} is {shown}. Nothing was scaled.\n"
        + declare_experts([names[i] for i in differing], same, classes, watched.named)
    )


def _rounded(values: Rows) -> list[float]:
    """Return the values, those that are the same as an earlier one replaced by it."""
    found: list[float] = []
    for value in values.tolist():
        near = (seen for seen in found if abs(seen - value) <= _SAME * max(abs(seen), abs(value)))
        found.append(next(near, value))
    return found


def _classes(labels: Sequence[float], ranks: Sequence[int]) -> list[list[int]]:
    """Return the ranks that have the same label, class by class."""
    found: dict[float, list[int]] = {}
    for label, rank in zip(labels, ranks, strict=True):
        found.setdefault(label, []).append(rank)
    return list(found.values())
