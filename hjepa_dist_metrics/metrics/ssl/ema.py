"""Dynamics of the target encoder, the teacher that follows by a moving average."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.metrics.kernels.flat_tensors import chunks, flatten
from hjepa_dist_metrics.metrics.kernels.norms import joint_norm
from hjepa_dist_metrics.parallel import unwrap
from hjepa_dist_metrics.parallel.sharding.fully_sharded import stored_parameters
from hjepa_dist_metrics.parallel.sharding.placement import LayoutReader, local_piece
from hjepa_dist_metrics.parallel.sharding.square_ranges import root, square_ranges
from hjepa_dist_metrics.states import Moments, Replicated, Sum
from hjepa_dist_metrics.states.base import moved

_CHUNK_ELEMENTS = 1 << 24  # temporaries of one chunk, not of the whole model


@dataclass(frozen=True)
class _Held:
    """Hold what this rank has of an encoder: weights that every rank has, pieces of others, buffers."""

    shapes: dict[str, torch.Size]
    whole: list[Tensor]
    pieces: list[Tensor]
    buffers: list[Tensor]

    def parts(self) -> tuple[list[Tensor], ...]:
        return self.whole, self.pieces, self.buffers


class EMADynamics(DistributedMetric):
    """Tell whether the teacher follows the student, from weights and buffers.

    Tags under `ema/`: `momentum_current`, `momentum_target`, `parameter_divergence` = |c - t|,
    `relative_divergence` = |c - t| / |t|, `cosine`, and from the second update on `update_magnitude`, the
    norm of the target's move since the update or `remember` before over |t|, and `target_weight_stability` =
    1 - that. Norms are L2 over everything, squares of which are added in float32 or better. `weight_distance`
    and `weight_move` are the same ratios over weights alone: a batch norm's buffers follow the data, and hide
    a teacher whose weights stand still.

    Ranks whose weights differ are named in a `DesyncError`. Of sharded weights (FSDP2) each piece counts
    once. Buffers may differ between ranks, a batch norm's running mean does: their squared norms are averaged
    over the ranks. Without a momentum nothing says that the ranks train one model: the squared norms of
    weights are averaged too, and the tags of the momentum left out.

    >>> student, teacher = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> ema = EMADynamics()
    >>> ema.update(student, teacher, momentum=0.996)
    >>> values = ema.compute()
    >>> round(values["ema/momentum_current"], 3), values["ema/weight_distance"] > 0
    (0.996, True)
    """

    def __init__(self) -> None:
        self.add_state("schedule", Replicated(shape=(2,)))
        # Norms of difference, target, context and the target's move, or their squares in three ranges.
        self.add_state("weights", Replicated(shape=(4,)))
        self.add_state("pieces", Sum(shape=(3, 4)))
        self.add_state("own_weights", Moments(shape=(3, 4)))  # of ranks that need not train one model
        self.add_state("buffers", Moments(shape=(3, 4)))
        self._before: _Held | None = None

    def remember(self, target_encoder: nn.Module) -> None:
        """Copy the target's weights, so that the next `update` can measure how far they have moved."""
        with torch.no_grad():
            self._keep(_held(unwrap(target_encoder)))

    def update(
        self,
        context_encoder: nn.Module,
        target_encoder: nn.Module,
        momentum: float | None = None,
        momentum_target: float = 1.0,
    ) -> None:
        """Measure both encoders, wrapped or not, after the target's update with `momentum`, where known.

        `momentum_target` is where the schedule ends. ConfigError where the encoders' parameters differ.
        """
        live, slow = _held(unwrap(context_encoder)), _held(unwrap(target_encoder))
        _require_alike(live.shapes, slow.shapes)
        before = [None] * 3 if self._before is None else self._before.parts()
        norms = [_norms(*part) for part in zip(live.parts(), slow.parts(), before, strict=True)]
        latest = ("pieces", "buffers", "own_weights")  # not a sum over updates
        self._states = {**self._states, **{name: self.states[name].empty() for name in latest}}
        weights, pieces, buffers = norms
        if momentum is None:
            self.own_weights.update(square_ranges(weights))
        else:
            self.schedule.update([momentum, momentum_target])
            self.weights.update(weights)
        self.pieces.update(square_ranges(pieces))
        self.buffers.update(square_ranges(buffers))
        self._keep(slow)

    def _keep(self, now: _Held) -> None:
        kept = [None] * 3 if self._before is None else self._before.parts()
        copies = (_copy(part, old) for part, old in zip(now.parts(), kept, strict=True))
        self._before = _Held(now.shapes, *copies)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tags; {} before the first update."""
        if not np.any(states["buffers"].count):
            return {}
        momentum, momentum_target = states["schedule"].value
        squares = torch.from_numpy(states["pieces"].value)
        if np.any(states["own_weights"].count):
            squares = squares + torch.from_numpy(states["own_weights"].mean)
        if states["weights"].known:
            squares = squares + square_ranges(torch.from_numpy(states["weights"].value))
        distance, weight, _, weight_move = root(squares).tolist()
        everything = squares + torch.from_numpy(states["buffers"].mean)
        difference, target, context, move = root(everything).tolist()
        schedule = {"ema/momentum_current": momentum, "ema/momentum_target": momentum_target}
        tags = {
            **({} if momentum != momentum else schedule),
            "ema/parameter_divergence": difference,
            "ema/relative_divergence": relative(difference, target),
            "ema/cosine": cosine(difference, target, context),
            "ema/weight_distance": relative(distance, weight),
        }
        if math.isnan(move) and not math.isnan(target):  # nothing to compare with
            return tags
        magnitude = relative(move, target)
        moves = {"ema/update_magnitude": magnitude, "ema/weight_move": relative(weight_move, weight)}
        return {**tags, **moves, "ema/target_weight_stability": 1.0 - magnitude}


def relative(part: float, whole: float) -> float:
    """Return part / whole; 0 where both are 0, infinity where only the whole is."""
    if whole == 0:
        return 0.0 if part == 0 else math.inf
    return part / whole


def cosine(difference: float, first: float, second: float) -> float:
    """Return the cosine of two vectors from their norms and that of their difference.

    1 - (d^2 - (a - b)^2) / (2 a b), which keeps its digits where the cosine is near 1, at any size. 0 for a
    zero vector.
    """
    if first == 0 or second == 0:
        return 0.0
    apart = first - second
    return 1.0 - ((difference / first) * (difference / second) - (apart / first) * (apart / second)) / 2.0


def _held(module: nn.Module) -> _Held:
    """Return parameters and floating-point buffers, detached, each in the order of their names."""
    weights = sorted(stored_parameters(module), key=lambda item: item[0])
    layout, held = LayoutReader(), _Held({name: weight.shape for name, weight in weights}, [], [], [])
    for _, weight in weights:
        where = layout(weight)
        if not where.shards:
            held.whole.append(local_piece(weight))
        elif all(where.coordinate[dim] == 0 for dim in where.copies):  # of the copies, the first one counts
            held.pieces.append(local_piece(weight))
    for _, buffer in sorted(module.named_buffers(), key=lambda item: item[0]):
        if buffer.is_floating_point():
            held.buffers.append(local_piece(buffer))
    return held


def have_same_parameters(context: nn.Module, target: nn.Module) -> bool:
    """Return whether two encoders, wrapped or not, have parameters of the same names and shapes."""
    encoders = unwrap(context), unwrap(target)
    first, second = ({name: weight.shape for name, weight in stored_parameters(m)} for m in encoders)
    return bool(first) and first == second


def _require_alike(context: dict[str, torch.Size], target: dict[str, torch.Size]) -> None:
    if context != target:
        unmatched = sorted(f"{name}{list(shape)}" for name, shape in context.items() ^ target.items())
        raise ConfigError(f"the encoders must have the same parameters; of only one of them: {unmatched[:6]}")
    if not context:
        raise ConfigError("the encoders have no parameters")


def _copy(now: Sequence[Tensor], kept: list[Tensor] | None) -> list[Tensor]:
    """Return copies, in the memory of the copies before where they fit."""
    if kept is None or [_kind(t) for t in kept] != [_kind(t) for t in now]:
        return [tensor.clone() for tensor in now]
    if kept:
        torch._foreach_copy_(kept, list(now), non_blocking=True)
    return kept


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def _norms(live: list[Tensor], slow: list[Tensor], before: list[Tensor] | None) -> Tensor:
    """Return float64 [4]: norms of difference, target, context, and move (NaN without a `before`)."""
    device = slow[0].device if slow else torch.device("cpu")
    total = torch.zeros((3, 4), dtype=torch.float64, device=device)
    if len(live) != len(slow) or not slow:
        return root(total)
    known = before is not None and len(before) == len(slow)
    for start, stop in chunks([tensor.numel() for tensor in slow], _CHUNK_ELEMENTS):
        context, target = _flat(live[start:stop], device), _flat(slow[start:stop], device)
        move = (
            target - _flat(before[start:stop], device) if known and before is not None else target * math.nan
        )
        parts = (context - target, target, context, move)
        total = total + square_ranges(torch.stack([joint_norm([part], device) for part in parts]))
    return root(total)


def _flat(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return everything in one vector, float32 or better: one kernel for many small tensors."""
    flat = flatten([moved(tensor, device) for tensor in tensors])
    return flat if flat.dtype == torch.float64 else flat.to(torch.float32)


_ema = partial(Entry, dashboard="ema")

ENTRIES = (
    _ema(
        "ema/momentum_current",
        "momentum now",
        "Momentum of the moving average at this step.",
        healthy="rises to ema/momentum_target; 1 for good means that the teacher is frozen",
    ),
    _ema(
        "ema/momentum_target",
        "momentum at the end",
        "Momentum that the schedule ends at.",
        healthy="constant",
    ),
    _ema(
        "ema/parameter_divergence",
        "distance of the encoders",
        "L2 norm of the difference of all weights and buffers, context encoder minus target encoder.",
        healthy="settles at a level that falls with the learning rate",
        deviation="often a sum of the parameters' norms, which is no norm, and without buffers",
    ),
    _ema(
        "ema/relative_divergence",
        "relative distance of the encoders",
        "ema/parameter_divergence over the norm of the target's weights.",
        healthy="below about 0.1; growing without end is a stale teacher, exactly 0 a shared one",
    ),
    _ema(
        "ema/cosine",
        "cosine of the encoders",
        "Cosine between all weights of the context encoder and all of the target encoder.",
        healthy="near 1",
    ),
    _ema(
        "ema/update_magnitude",
        "last move of the teacher",
        "Norm of the target encoder's own last move over the norm of its weights.",
        healthy="small and above 0; exactly 0 with momentum below 1 means that the update never runs, "
        "as where a wrapper hides the target encoder",
    ),
    _ema(
        "ema/target_weight_stability",
        "stability of the teacher",
        "1 - ema/update_magnitude.",
        healthy="near 1, and below it",
    ),
    Entry(
        "train/ema_momentum",
        "EMA momentum",
        "Momentum of the target encoder's moving average.",
        healthy="rises to its end value along the schedule",
    ),
    _ema(
        "ema/weight_distance",
        "relative distance of the encoders' weights",
        "L2 norm of the difference of the weights over that of the target's weights, without buffers.",
        healthy="as ema/relative_divergence; exactly 0 is a shared teacher",
    ),
    _ema(
        "ema/weight_move",
        "last move of the teacher's weights",
        "L2 norm of the target's weights' last move over that of the weights, without buffers.",
        healthy="about (1 - momentum) / momentum times ema/weight_distance; 0 is a teacher that stands still",
    ),
)
