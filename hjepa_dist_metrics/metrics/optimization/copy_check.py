"""Compare over ranks, once, the gradients that count as copies of each other where no layout is declared."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hjepa_dist_metrics.errors import DesyncError
from hjepa_dist_metrics.metrics.kernels.norms import tensor_norms
from hjepa_dist_metrics.metrics.optimization.declarations import declare_experts, declare_stages, rank_list
from hjepa_dist_metrics.metrics.optimization.tracked_parameters import TrackedParameters
from hjepa_dist_metrics.parallel import ProcessContext
from hjepa_dist_metrics.parallel.collectives import all_gather_tensors, gather_texts
from hjepa_dist_metrics.parallel.reduction import norm_over_shards, resolve_partial
from hjepa_dist_metrics.parallel.sharding.parameter_shards import ParameterShard
from hjepa_dist_metrics.parallel.sharding.placement import is_dtensor

# Copies differ by rounding at most, also where each rank computes its own in bfloat16.
_TOLERANCE = 1e-3
# Once some are no copies, those that are the same to this are.
_SAME = 1e-6


class CopyCheck:
    """Raise where ranks hold different parameters, or different gradients of what would count as copies.

    A collective call at the first time over the ranks of `context`, and nothing afterwards.
    """

    def __init__(self, watched: TrackedParameters, context: ProcessContext | None) -> None:
        self._watched, self._context = watched, context
        self._done = False

    def __call__(self) -> None:
        """Compare names, shapes and norms. DesyncError, the same on every rank, where they differ."""
        context = self._context or ProcessContext.current()
        if self._done or context.world_size == 1 or not context.is_member:
            return
        self._done = True
        parameters = [_described(slot) for slot in self._watched.slots]
        device = torch.device("cpu") if context.channel else self._watched.slots[0].parameter.device
        _require_same_parameters(parameters, context, device)
        norms = all_gather_tensors(self._whole_norms().to(device), context).cpu().numpy()
        _require_same_norms(self._watched, norms)

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


def _require_same_parameters(own: Sequence[str], context: ProcessContext, device: torch.device) -> None:
    digest = hashlib.sha256("\n".join(own).encode()).digest()[:8]
    number = torch.from_numpy(np.frombuffer(digest, dtype=np.int64).copy())
    digests = all_gather_tensors(number.to(device), context).reshape(-1).tolist()
    if len(set(digests)) == 1:
        return
    lists = [text.split("\n") for text in gather_texts("\n".join(own), context)]
    other = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
    holder, lacking = (0, other) if set(lists[0]) - set(lists[other]) else (other, 0)
    extra = [name for name in lists[holder] if name not in set(lists[lacking])]
    what = f"rank {holder} has {extra[0]!r}" if extra else f"rank {holder} has another order of them"
    raise DesyncError(
        f"the ranks hold different parameters: {what} and rank {lacking} does not. Nothing was scaled.\n"
        + declare_stages(_classes(digests))
    )


def _require_same_norms(watched: TrackedParameters, norms: npt.NDArray[np.float64]) -> None:
    """Raise where a column of `norms` [ranks, parameters] is not one number, but for what is not finite."""
    finite = np.isfinite(norms)
    highest = np.where(finite, norms, -np.inf).max(axis=0)
    lowest = np.where(finite, norms, np.inf).min(axis=0)
    if not (highest > lowest + _TOLERANCE * highest).any():
        return
    differing = np.flatnonzero(highest > lowest + _SAME * highest).tolist()
    names = [slot.name for slot in watched.slots]
    first = differing[0]
    classes = _classes(_rounded(norms[:, first]))
    shown = "; ".join(f"{norms[ranks[0], first]:.6g} on {rank_list(ranks)}" for ranks in classes)
    same = [name for index, name in enumerate(names) if index not in set(differing)]
    raise DesyncError(
        f"the gradients of {len(differing)} of {len(names)} parameters differ between ranks that would count "
        f"as copies of each other: the norm of {names[first]!r} is {shown}. Nothing was scaled.\n"
        + declare_experts([names[i] for i in differing], same, classes, watched.named)
    )


def _rounded(values: npt.NDArray[np.float64]) -> list[float]:
    """Return the values, those that are the same as an earlier one replaced by it."""
    found: list[float] = []
    for value in values.tolist():
        near = (seen for seen in found if abs(seen - value) <= _SAME * max(abs(seen), abs(value)))
        found.append(next(near, value))
    return found


def _classes(labels: Sequence[float]) -> list[list[int]]:
    """Return the ranks that have the same label, class by class."""
    found: dict[float, list[int]] = {}
    for rank, label in enumerate(labels):
        found.setdefault(label, []).append(rank)
    return list(found.values())
