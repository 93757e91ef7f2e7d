"""Gradient clipping that says what it did: norms, coefficient, and how often it engages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.metrics.buffered import BufferedMetric
from hjepa_dist_metrics.metrics.kernels.norms import scale_
from hjepa_dist_metrics.metrics.optimization.layouts.copy_check import CopyCheck, Gather
from hjepa_dist_metrics.metrics.optimization.layouts.group_norms import GroupNorms
from hjepa_dist_metrics.metrics.optimization.tracked_parameters import Groups, Parameters, TrackedParameters
from hjepa_dist_metrics.parallel import ParallelLayout, ProcessContext
from hjepa_dist_metrics.parallel.reduction import any_rank
from hjepa_dist_metrics.parallel.sharding.square_ranges import root_sum_square
from hjepa_dist_metrics.states import Replicated
from hjepa_dist_metrics.states.base import follow

_TORCH_EPS = 1e-6  # torch.nn.utils.clip_grad_norm_ adds it to the norm
# Norm before, coefficient, whether above the threshold, the groups' norms.
_Step = tuple[Tensor, Tensor, Tensor, Tensor | None]


class GradientClipping(BufferedMetric[_Step]):
    """Clip gradients by their global norm and keep count, without waiting for the device.

    `clip_` replaces `torch.nn.utils.clip_grad_norm_`, in any of these models: plain, DDP, FSDP1,
    FSDP2, HSDP, tensor and sequence parallel, mixed. Pass the model itself: FSDP1's parameters cannot be read
    without it. Where ranks hold different parameters, pipeline stages or experts, declare a `layout`. Without
    one the first call compares parameters and gradients over the ranks, and raises `DesyncError` before
    anything is scaled where they are no copies. Under a GradScaler call it after `unscale_`; under gradient
    accumulation, once, before the optimizer's step. `gather` takes the place of the collective by which that
    comparison is made.

    Tags under `gradient/`: `global_norm_before_clip`, `global_norm_after_clip`, `clipping_ratio` (after /
    before), `was_clipped` of the latest step; `clipping_percentage` over the whole run and
    `clipping_percentage_window` over the last `window` steps; `nonfinite_steps`, which count neither as
    clipped nor as steps of a percentage. With `groups`, named lists of parameters, also
    `{group}/global_norm_before_clip` and `_after_clip`. With `skip_nonfinite` a step whose norm is NaN or
    infinite on any rank loses its gradients on all, so that optimizers pass it over (`skipped_steps`); this
    waits for the device at each step.

    >>> weight = nn.Parameter(torch.ones(4))
    >>> clipping = GradientClipping([weight])
    >>> weight.grad = torch.full((4,), 2.0)
    >>> norm = clipping.clip_(1.0)
    >>> values = clipping.compute()
    >>> float(norm), values["gradient/clipping_percentage"], round(values["gradient/clipping_ratio"], 3)
    (4.0, 100.0, 0.25)
    """

    persistent = True

    def __init__(
        self,
        parameters: Parameters,
        window: int = 100,
        *,
        groups: Groups | None = None,
        skip_nonfinite: bool = False,
        context: ProcessContext | None = None,
        layout: ParallelLayout | None = None,
        gather: Gather | None = None,
    ) -> None:
        if window < 1:
            raise ConfigError(f"the window must hold at least one step, got window={window}")
        self.watched = TrackedParameters(parameters, groups)
        self.window, self.skip_nonfinite, self._context = window, skip_nonfinite, context
        self._norms = GroupNorms(self.watched, layout)
        self._check = None if layout else CopyCheck(self.watched, context, gather)
        self.add_state("latest", Replicated(shape=(3,)))  # norm before, after, whether clipped
        self.add_state("totals", Replicated(shape=(3,)))  # finite steps, clipped steps, nonfinite steps
        self.add_state("recent", Replicated(shape=(window,)))  # 1 clipped, 0 not, NaN unknown
        if self._norms.names:
            self.add_state("by_group", Replicated(shape=(2, len(self._norms.names))))  # before, after
        self._position = 0  # of the coming step in `recent`

    @torch.no_grad()
    def clip_(self, max_norm: float) -> Tensor:
        """Scale the gradients to a global L2 norm of at most `max_norm`; return the norm before, 0-d.

        The norm is computed in float32 or better for every dtype of gradients. The first call is a
        collective one, and all are where parameters are sharded or a layout is declared. ConfigError unless
        max_norm > 0 (infinity measures without clipping), where no parameter has a gradient, and where the
        model's parameters are not those of the start.
        """
        if not max_norm > 0:
            raise ConfigError(f"max_norm must be positive (infinity to only measure), got {max_norm!r}")
        stored, norms = self._read()
        norm = root_sum_square(norms)
        coefficient = _coefficient(norm, max_norm)
        if not math.isinf(max_norm):
            scale_(stored, coefficient)
        if self.skip_nonfinite and any_rank(~torch.isfinite(norm), self._context or ProcessContext.current()):
            self._drop_gradients()
        self.update(norm, coefficient, norm > max_norm, norms[:-1] if self._norms.names else None)
        return norm.to(_wide(stored), copy=True)  # a copy is the caller's to change

    @contextmanager
    def measuring(self, max_norm: float | None = None) -> Iterator[None]:
        """Record the norm before and after the body, which clips the gradients in a way of its own.

        A step counts as clipped where the norm is smaller afterwards. With `max_norm` the body is known to
        clip all parameters by torch's formula, and what it does is not read back. Where parameters are
        sharded this is a collective call. ConfigError as in `clip_`.
        """
        _, first = self._read()
        yield
        if max_norm is not None:
            norm = root_sum_square(first)
            groups = first[:-1] if self.watched.groups else None
            self.update(norm, _coefficient(norm, max_norm), norm > max_norm, groups)
            return
        _, last = self._read()
        before, after = root_sum_square(first), root_sum_square(last)
        ratio = torch.where(before == 0, 1.0, after / before)
        groups = torch.stack([first, last])[:, :-1] if self._norms.names else None
        self.update(before, ratio, after < before, groups)

    @torch.no_grad()
    def _read(self) -> tuple[list[Tensor], Tensor]:
        """Return the gradients as they are stored, and the groups' norms, float64 [groups + 1]."""
        self.watched.require_unchanged()
        stored = [g for slot in self.watched.slots if (g := slot.stored_gradient()) is not None]
        if self._check is not None:
            self._check()
        norms = self._norms()
        if not stored and float(norms.max()) == 0:  # another pipeline stage may have some
            raise ConfigError("no parameter has a gradient: clip after backward() and before zero_grad()")
        return stored, norms

    def update(
        self, norm: Tensor, coefficient: Tensor, clipped: Tensor, group_norms: Tensor | None = None
    ) -> None:
        """Record one step: norm before, coefficient applied, whether above the threshold; all 0-d.

        `group_norms` are the groups' norms before, [groups], or those before and after, [2, groups].
        """
        self._defer((norm, coefficient, clipped, group_norms))

    def _flush(self, steps: Sequence[_Step]) -> None:
        columns = zip(*[step[:3] for step in steps], strict=True)
        norms, coefficients, clipped = (torch.stack(column) for column in columns)
        *_, group_norms = steps[-1]
        norms = norms.to(torch.float64)
        finite = torch.isfinite(norms)
        engaged = (clipped & finite).to(torch.float64)
        counted = finite.to(torch.float64)
        self.latest.update(torch.stack([norms[-1], norms[-1] * coefficients[-1], engaged[-1]]))
        added = torch.stack([counted, engaged, 1 - counted]).sum(dim=1)
        self.totals.update(added + torch.nan_to_num(follow(self.totals.data[0], added)))
        self._remember(torch.where(finite, engaged, float("nan")))
        if self._norms.names and group_norms is not None:
            both = group_norms.ndim == 2
            pair = group_norms if both else torch.stack([group_norms, group_norms * coefficients[-1]])
            self.by_group.update(pair)

    def _remember(self, engaged: Tensor) -> None:
        """Write the latest steps, 1 clipped, 0 not, NaN unknown, into the window."""
        kept = engaged[-self.window :]
        first = self._position + len(engaged) - len(kept)
        places = torch.arange(first, first + len(kept), device=kept.device) % self.window
        self.recent.update(follow(self.recent.data[0], kept).index_copy(0, places, kept))
        self._position += len(engaged)

    def load_states(self, packed: Mapping[str, Any], *, holder: bool) -> None:
        """Replace the states; every rank goes on in the window where the saved steps ended."""
        super().load_states(packed, holder=holder)
        finite, _, nonfinite = packed["totals"]["data"][0].nan_to_num().tolist()
        self._position = int(finite + nonfinite)

    def merge(self, other: DistributedMetric) -> Self:
        """Take over what `other`, a later stretch of steps, has seen, and go on in its window."""
        super().merge(other)
        if isinstance(other, GradientClipping) and other._position:
            self._position = other._position
        return self

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tags; {} before the first step."""
        steps, clipped, nonfinite = states["totals"].value
        if not steps + nonfinite > 0:
            return {}
        before, after, engaged = states["latest"].value.tolist()  # floats: infinity over infinity is NaN
        recent = states["recent"].value
        known = recent[recent == recent]
        tags = {
            "gradient/global_norm_before_clip": before,
            "gradient/global_norm_after_clip": after,
            "gradient/was_clipped": engaged,
            "gradient/clipping_ratio": after / before if before != 0 else 1.0,
            "gradient/clipping_percentage": 100.0 * clipped / steps if steps else 0.0,
            "gradient/clipping_percentage_window": 100.0 * known.mean() if len(known) else 0.0,
            "gradient/nonfinite_steps": nonfinite,
        }
        if self.skip_nonfinite:
            tags["gradient/skipped_steps"] = nonfinite
        for index, name in enumerate(self._norms.names):
            group_before, group_after = states["by_group"].value[:, index]
            tags[f"gradient/{name}/global_norm_before_clip"] = group_before
            tags[f"gradient/{name}/global_norm_after_clip"] = group_after
        return tags

    def _drop_gradients(self) -> None:
        for slot in self.watched.slots:
            slot.parameter.grad = None


def _coefficient(norm: Tensor, max_norm: float) -> Tensor:
    """Return by what `torch.nn.utils.clip_grad_norm_` multiplies gradients of a norm."""
    return torch.clamp(max_norm / (norm + _TORCH_EPS), max=1.0)


def _wide(gradients: list[Tensor]) -> torch.dtype:
    return torch.float64 if gradients and gradients[0].dtype == torch.float64 else torch.float32
