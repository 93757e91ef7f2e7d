"""What the optimizer's step really did (S0 5.2): updates against weights, moments, weights themselves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.metrics.kernels.flat_tensors import SMALL, flatten, joined_sums, split_by_size
from hjepa_dist_metrics.metrics.kernels.moments import (
    moments,
    pooled_spread,
    pooled_spreads,
    standard_deviation,
)
from hjepa_dist_metrics.metrics.kernels.norms import tensor_norms
from hjepa_dist_metrics.metrics.optimization.parameter_partition import ParameterPartition
from hjepa_dist_metrics.metrics.optimization.tracked_parameters import optimizer_groups, optimizer_list
from hjepa_dist_metrics.metrics.validation import as_number
from hjepa_dist_metrics.parallel import ParallelLayout, ProcessContext
from hjepa_dist_metrics.parallel.reduction import moments_over_shards, norm_over_shards, sum_over_shards
from hjepa_dist_metrics.parallel.sharding.square_ranges import root, square_ranges
from hjepa_dist_metrics.states.base import to_device
from hjepa_dist_metrics.states.ranks.sharded import ShardedSum
from hjepa_dist_metrics.states.ranks.sharded_norms import ShardedMoments, ShardedNorm

NORMS = ("update", "moment1")
SUMS = ("moment2", "moments")  # the sum of Adam's second moments, and how many there are
_BLOCK = 1 << 16


@dataclass(frozen=True)
class _Copy:
    """Hold a parameter piece's values from before the step, or every `stride`-th block of them."""

    slot: int
    values: list[Tensor]
    stride: int
    scale: float  # elements of the piece over elements copied


class Updates(DistributedMetric):
    """Compare the parameters before and after an optimizer's step, by parameter group.

    Wrap the steps that are logged: `with updates.around(): optimizer.step()`. Tags: `update/{group}_norm`,
    norm(p_after - p_before); `update/{group}_ratio`, that over norm(p_before); `update/{group}_exp_avg_norm`
    and `_exp_avg_sq_mean`, the norm of Adam's first moment and the mean of its second, where there are any;
    `weights/{group}_norm`, `_mean`, `_std` before the step; and `learning_rate/avg_param_update`, the sum
    over parameters of norm(gradient) * learning rate, over the root of the number of their elements.

    At most `max_elements` of this rank's elements are copied for the comparison. Of a larger model every
    k-th block of 64 Ki elements of each parameter stands for the others.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> updates = Updates(model, optimizer)
    >>> model.weight.grad = model.weight.detach().clone()
    >>> updates.before()
    >>> optimizer.step()
    >>> updates.update()
    >>> round(updates.compute()["update/group0_ratio"], 3)
    0.1
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Optimizer | Sequence[Optimizer],
        *,
        max_elements: int = 1 << 26,
        context: ProcessContext | None = None,
        layout: ParallelLayout | None = None,
    ) -> None:
        if max_elements < 1:
            raise ConfigError(f"at least one element must be compared, got max_elements={max_elements}")
        self.optimizers = optimizer_list(optimizers)
        self.max_elements = max_elements
        groups = optimizer_groups(self.optimizers)
        self.segments = ParameterPartition(model, context=context, groups=groups, layout=layout)
        self.groups = [name for name in self.segments.modules if layout or name in groups]
        self._before: list[_Copy] | None = None  # outside of a step
        size = len(self.segments.segments)
        self.add_state("weights", ShardedMoments(shape=(size,)))
        self.add_state("norms", ShardedNorm(shape=(len(NORMS), size)))
        self.add_state("sums", ShardedSum(shape=(len(SUMS), size)))
        self.add_state("step_norms", ShardedNorm(shape=(len(self.segments.parts.names),)))
        self.add_state("step_sizes", ShardedSum(shape=(len(self.segments.parts.names),)))

    @contextmanager
    def around(self) -> Iterator[None]:
        """Compare the parameters before and after the body, which makes the step."""
        self.before()
        yield
        self.update()

    @torch.no_grad()
    def before(self) -> None:
        """Copy the parameters and read the gradients that the step will use."""
        values, slots = self.segments.values()
        chosen = [
            (slot, piece.reshape(-1))
            for slot, piece in zip(slots, values, strict=True)
            if self.segments.slots[slot].parameter.requires_grad and piece.numel() and self._counts(slot)
        ]
        stride = max(1, math.ceil(sum(piece.numel() for _, piece in chosen) / self.max_elements))
        self._before = _copies(chosen, stride)
        self._read_gradients()

    def _counts(self, slot: int) -> bool:
        """Return whether this rank counts for its piece of a parameter, or is one of equal copies."""
        return self.segments.parts.segment_of[slot] < len(self.segments.segments)

    def _read_gradients(self) -> None:
        segments, device = self.segments, self.segments.device
        rates = {id(p): g["lr"] for o in self.optimizers for g in o.param_groups for p in g["params"]}
        held = zip(*segments.gradients(), strict=True)
        counted = [(piece, slot) for piece, slot in held if self._counts(slot)]
        pieces, slots = [piece for piece, _ in counted], [slot for _, slot in counted]
        own = [rates.get(id(segments.slots[slot].parameter), 0.0) for slot in slots]
        if any(isinstance(rate, Tensor) for rate in own):
            weights = torch.stack([as_number("a learning rate", rate).to(device) for rate in own])
        else:
            weights = _numbers(own, device)
        parts = segments.parts
        places = [parts.place[slot] for slot in slots]
        norms = _add_columns(tensor_norms(pieces, device) * weights, places, len(parts.names))
        sizes = _add_columns(_sizes(pieces, device), places, len(parts.names))
        roles = to_device(parts.slot_roles, device)
        self.step_norms.update(norm_over_shards(norms, parts.slot_beyond), roles)
        self.step_sizes.update(sum_over_shards(sizes, parts.slot_beyond), roles)

    def update(self) -> None:
        """Compare with the parameters as they are now, after the step."""
        if self._before is None:
            raise ConfigError("there is nothing to compare with: call before() ahead of the optimizer's step")
        segments, copies, parts = self.segments, self._before, self.segments.parts
        self._before = None
        columns = _index([parts.segment_of[copied.slot] for copied in copies], segments.device)
        size, roles = len(segments.segments), to_device(parts.roles, segments.device)
        counts, sums, spreads = self._values(copies)
        both = torch.stack([counts, sums])
        count, total = both.new_zeros((2, size)).index_add_(1, columns, both)
        pooled = pooled_spreads(counts, sums, spreads, columns, size)
        self.weights.update_moments(*moments_over_shards(count, total, pooled, parts.beyond), roles)
        changes, (moment1, *second) = self._changes(copies), self._moments(copies)
        ranges = square_ranges(torch.stack([changes, moment1]))
        norms = root(ranges.new_zeros((3, len(NORMS), size)).index_add_(2, columns, ranges))
        self.norms.update(norm_over_shards(norms, parts.beyond), roles.expand(len(NORMS), -1))
        rest = torch.stack(second)
        block = rest.new_zeros((len(SUMS), size)).index_add_(1, columns, rest)
        self.sums.update(sum_over_shards(block, parts.beyond), roles.expand(len(SUMS), -1))

    def _values(self, copies: Sequence[_Copy]) -> tuple[Tensor, Tensor, Tensor]:
        """Return count, sum and spread of each copied parameter before the step, [n] each."""
        device = self.segments.device
        blocks = [block for copied in copies for block in copied.values]
        owners = _index([i for i, copied in enumerate(copies) for _ in copied.values], device)
        counts, scales = _sizes(blocks, device), _numbers([copied.scale for copied in copies], device)
        sums, spreads = moments(blocks, device)
        both = torch.stack([counts, sums])
        added = both.new_zeros((2, len(copies))).index_add_(1, owners, both) * scales
        pooled = pooled_spreads(counts, sums, spreads, owners, len(copies))
        return added[0], added[1], pooled * scales.sqrt()

    def _changes(self, copies: Sequence[_Copy]) -> Tensor:
        """Return the norm of each copied parameter's change, [n]; overwrites the copies."""
        device = self.segments.device
        old = [block for copied in copies for block in copied.values]
        now = [
            block
            for copied in copies
            for block in _blocks(self.segments.slots[copied.slot].values().reshape(-1), copied.stride)
        ]
        if old:
            torch._foreach_sub_(old, now)
        owners = [index for index, copied in enumerate(copies) for _ in copied.values]
        norms = _join_norms(tensor_norms(old, device), owners, len(copies))
        return norms * _numbers([copied.scale**0.5 for copied in copies], device)

    def _moments(self, copies: Sequence[_Copy]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the norm of Adam's first moment, the sum of its second, their elements, [n] each."""
        device, found = self.segments.device, []
        for index, copied in enumerate(copies):
            slot = self.segments.slots[copied.slot]
            owner = next((o for o in self.optimizers if slot.parameter in o.state), None)
            state = {} if owner is None else owner.state[slot.parameter]
            if "exp_avg" in state and "exp_avg_sq" in state:
                found.append((index, slot.companion(state["exp_avg"]), slot.companion(state["exp_avg_sq"])))
        if not found:
            nothing = torch.zeros(len(copies), dtype=torch.float64, device=device)
            return nothing, nothing, nothing
        places = [index for index, _, _ in found]
        first = tensor_norms([m for _, m, _ in found], device)
        second = _sums([v for _, _, v in found], device)
        sizes = _sizes([m for _, m, _ in found], device)
        spread = [_add_columns(row, places, len(copies)) for row in (first, second, sizes)]
        return spread[0], spread[1], spread[2]

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tags; {} before the first compared step."""
        if not states["sums"].known:
            return {}
        elements = states["step_sizes"].value.sum()
        tags: dict[str, Any] = {}
        if elements:
            moved = states["step_norms"].value.sum()
            tags["learning_rate/avg_param_update"] = moved / math.sqrt(elements)
        for group in self.groups:
            tags |= self._group_tags(group, states)
        return tags

    def _group_tags(self, group: str, states: Mapping[str, Any]) -> dict[str, float]:
        columns, weights = self.segments.columns(group), states["weights"]
        counts, sums, spreads = (
            torch.from_numpy(v[columns]) for v in (weights.value, weights.sum, weights.spread)
        )
        count, total = float(counts.sum()), float(sums.sum())
        if not count:
            return {}
        spread = float(pooled_spread(counts, sums, spreads))
        norm = math.hypot(spread, total / math.sqrt(count))
        moved, moment1 = (math.hypot(*row) for row in states["norms"].value[:, columns].tolist())
        moment2, moments_held = states["sums"].value[:, columns].sum(axis=1)
        tags = {
            f"update/{group}_norm": moved,
            f"update/{group}_ratio": moved / norm if norm else 0.0,
            f"weights/{group}_norm": norm,
            f"weights/{group}_mean": total / count,
            f"weights/{group}_std": standard_deviation(count, total, spread),
        }
        if moments_held:
            tags[f"update/{group}_exp_avg_norm"] = moment1
            tags[f"update/{group}_exp_avg_sq_mean"] = moment2 / moments_held
        return tags


def _numbers(values: Sequence[float], device: torch.device) -> Tensor:
    return to_device(torch.tensor(values, dtype=torch.float64, device="cpu"), device)


def _sizes(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    return _numbers([tensor.numel() for tensor in tensors], device)


def _index(columns: Sequence[int], device: torch.device) -> Tensor:
    return to_device(torch.tensor(columns, dtype=torch.int64, device="cpu"), device)


def _add_columns(row: Tensor, columns: Sequence[int], size: int) -> Tensor:
    """Add element i of `row` [n] to element `columns[i]` of [size]."""
    return row.new_zeros(size).index_add_(0, _index(columns, row.device), row)


def _join_norms(norms: Tensor, columns: Sequence[int], size: int) -> Tensor:
    """Return the norm of the `norms` [n] of each of `size` columns; norm i belongs to column `columns[i]`."""
    ranges = square_ranges(norms)
    return root(ranges.new_zeros((3, size)).index_add_(1, _index(columns, norms.device), ranges))


def _sums(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return the sum of each tensor, float64 [n]."""
    if not tensors:
        return torch.zeros(0, dtype=torch.float64, device=device)
    if device.type == "cpu" and all(0 < tensor.numel() <= SMALL for tensor in tensors):
        return joined_sums(tensors)[0]
    return torch.stack([tensor.sum(dtype=_wide(tensor.dtype)).to(torch.float64) for tensor in tensors])


def _copies(pieces: Sequence[tuple[int, Tensor]], stride: int) -> list[_Copy]:
    """Copy every `stride`-th block of the slots' pieces, small ones of one dtype with one call."""
    blocks = [_blocks(piece, stride) for _, piece in pieces]
    flat = [block for mine in blocks for block in mine]
    copies: dict[int, Tensor] = {}
    small, large = split_by_size(flat)
    for dtype in {flat[i].dtype for i in small}:
        alike = [i for i in small if flat[i].dtype == dtype]
        joined = flatten([flat[i] for i in alike]).to(_wide(dtype))
        copies |= zip(alike, joined.split_with_sizes([flat[i].numel() for i in alike]), strict=True)
    copies |= {i: flat[i].to(_wide(flat[i].dtype), copy=True) for i in large}
    places = iter(range(len(flat)))
    made = []
    for (slot, piece), mine in zip(pieces, blocks, strict=True):
        values = [copies[next(places)] for _ in mine]
        made.append(_Copy(slot, values, stride, piece.numel() / sum(block.numel() for block in mine)))
    return made


def _blocks(flat: Tensor, stride: int) -> list[Tensor]:
    if stride == 1:
        return [flat]
    return list(torch.split(flat, _BLOCK)[::stride])


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
