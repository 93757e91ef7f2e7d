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
from hjepa_dist_metrics.metrics.kernels.norms import square_sums
from hjepa_dist_metrics.metrics.kernels.stable_variance import sums_and_squares, variance
from hjepa_dist_metrics.metrics.optimization.parameter_partition import ParameterPartition
from hjepa_dist_metrics.metrics.optimization.tracked_parameters import optimizer_groups, optimizer_list
from hjepa_dist_metrics.metrics.validation import as_number
from hjepa_dist_metrics.parallel import ProcessContext
from hjepa_dist_metrics.parallel.reduction import sum_over_shards
from hjepa_dist_metrics.states.base import to_device
from hjepa_dist_metrics.states.ranks.sharded import ShardedSum

FIELDS = ("count", "sum", "square_sum", "update_squares", "moment1_squares", "moment2_sum", "moments")
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
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Optimizer | Sequence[Optimizer],
        *,
        max_elements: int = 1 << 26,
        context: ProcessContext | None = None,
    ) -> None:
        if max_elements < 1:
            raise ConfigError(f"at least one element must be compared, got max_elements={max_elements}")
        self.optimizers = optimizer_list(optimizers)
        self.max_elements = max_elements
        groups = optimizer_groups(self.optimizers)
        self.segments = ParameterPartition(model, context=context, groups=groups)
        self.groups = [name for name in groups if name in self.segments.modules]
        self._before: list[_Copy] = []
        self.add_state("sums", ShardedSum(shape=(len(FIELDS), len(self.segments.segments))))
        self.add_state("steps", ShardedSum(shape=(2, len(self.segments.slots))))  # squares, elements

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
            if self.segments.slots[slot].parameter.requires_grad and piece.numel()
        ]
        stride = max(1, math.ceil(sum(piece.numel() for _, piece in chosen) / self.max_elements))
        self._before = _copies(chosen, stride)
        self._read_gradients()

    def _read_gradients(self) -> None:
        segments, device = self.segments, self.segments.device
        rates = {id(p): g["lr"] for o in self.optimizers for g in o.param_groups for p in g["params"]}
        pieces, slots = segments.gradients()
        squared = [rates.get(id(segments.slots[slot].parameter), 0.0) ** 2 for slot in slots]
        if any(isinstance(rate, Tensor) for rate in squared):
            weights = torch.stack([as_number("a learning rate", rate).to(device) for rate in squared])
        else:
            weights = to_device(torch.tensor(squared, dtype=torch.float64, device="cpu"), device)
        sizes = to_device(
            torch.tensor([piece.numel() for piece in pieces], dtype=torch.float64, device="cpu"), device
        )
        rows = torch.stack([square_sums(pieces, device) * weights, sizes])
        block = _spread(rows, slots, len(segments.slots))
        roles = to_device(segments.slot_roles, device).expand(2, -1)
        self.steps.update(sum_over_shards(block, segments.slot_beyond), roles)

    def update(self) -> None:
        """Compare with the parameters as they are now, after the step."""
        if not self._before:
            raise ConfigError("there is nothing to compare with: call before() ahead of the optimizer's step")
        segments, copies = self.segments, self._before
        self._before = []
        rows = torch.cat([self._values_and_changes(copies), self._moments(copies)])
        columns = [segments.segment_of[copied.slot] for copied in copies]
        block = _spread(rows, columns, len(segments.segments))
        roles = to_device(segments.roles, segments.device).expand(len(FIELDS), -1)
        self.sums.update(sum_over_shards(block, segments.beyond), roles)

    def _values_and_changes(self, copies: Sequence[_Copy]) -> Tensor:
        """Return count, sum, sum of squares and sum of squared changes of each copied parameter, [4, n]."""
        device = self.segments.device
        old = [block for copied in copies for block in copied.values]
        owners = [index for index, copied in enumerate(copies) for _ in copied.values]
        sums, squares = sums_and_squares(old, device)
        now = [
            block
            for copied in copies
            for block in _blocks(self.segments.slots[copied.slot].values().reshape(-1), copied.stride)
        ]
        torch._foreach_sub_(old, now)
        counts = to_device(
            torch.tensor([block.numel() for block in old], dtype=torch.float64, device="cpu"), device
        )
        rows = torch.stack([counts, sums, squares, square_sums(old, device)])
        scales = to_device(
            torch.tensor([copied.scale for copied in copies], dtype=torch.float64, device="cpu"), device
        )
        return _spread(rows, owners, len(copies)) * scales

    def _moments(self, copies: Sequence[_Copy]) -> Tensor:
        """Return the sum of squares of Adam's first moment, the sum of its second, their elements, [3, n]."""
        device, found = self.segments.device, []
        for index, copied in enumerate(copies):
            slot = self.segments.slots[copied.slot]
            owner = next((o for o in self.optimizers if slot.parameter in o.state), None)
            state = {} if owner is None else owner.state[slot.parameter]
            if "exp_avg" in state and "exp_avg_sq" in state:
                found.append((index, slot.companion(state["exp_avg"]), slot.companion(state["exp_avg_sq"])))
        if not found:
            return torch.zeros((3, len(copies)), dtype=torch.float64, device=device)
        first = square_sums([m for _, m, _ in found], device)
        second = _sums([v for _, _, v in found], device)
        sizes = to_device(
            torch.tensor([m.numel() for _, m, _ in found], dtype=torch.float64, device="cpu"), device
        )
        return _spread(torch.stack([first, second, sizes]), [index for index, _, _ in found], len(copies))

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tags; {} before the first compared step."""
        if not states["sums"].known:
            return {}
        squares, elements = states["steps"].value
        tags: dict[str, Any] = {}
        if elements.sum():
            tags["learning_rate/avg_param_update"] = (squares**0.5).sum() / math.sqrt(elements.sum())
        for group in self.groups:
            sums = states["sums"].value[:, self.segments.columns(group)].sum(axis=1)
            tags |= _group_tags(group, dict(zip(FIELDS, sums.tolist(), strict=True)))
        return tags


def _group_tags(group: str, sums: Mapping[str, float]) -> dict[str, float]:
    count = sums["count"]
    if not count:
        return {}
    norm, moved = math.sqrt(sums["square_sum"]), math.sqrt(sums["update_squares"])
    tags = {
        f"update/{group}_norm": moved,
        f"update/{group}_ratio": moved / norm if norm else 0.0,
        f"weights/{group}_norm": norm,
        f"weights/{group}_mean": sums["sum"] / count,
        f"weights/{group}_std": math.sqrt(variance(count, sums["sum"], sums["square_sum"])),
    }
    if sums["moments"]:
        tags[f"update/{group}_exp_avg_norm"] = math.sqrt(sums["moment1_squares"])
        tags[f"update/{group}_exp_avg_sq_mean"] = sums["moment2_sum"] / sums["moments"]
    return tags


def _spread(rows: Tensor, columns: Sequence[int], size: int) -> Tensor:
    """Add column i of `rows` [fields, n] to column `columns[i]` of [fields, size]."""
    index = to_device(torch.tensor(columns, dtype=torch.int64, device="cpu"), rows.device)
    return rows.new_zeros((len(rows), size)).index_add_(1, index, rows)


def _sums(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return the sum of each tensor, float64 [n]."""
    if device.type == "cpu" and all(0 < tensor.numel() <= SMALL for tensor in tensors):
        return joined_sums(tensors)[0]
    return torch.stack([tensor.sum(dtype=torch.float32) for tensor in tensors]).to(torch.float64)


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
