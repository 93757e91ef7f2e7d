"""Losses of a hierarchical objective: exact means over the job, and what each level contributes (S0 1.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.metrics.inputs import as_number
from hjepa_dist_metrics.states import Sum

Count = float | int | Tensor
_UNWEIGHTED = "loss_unweighted"


def contributions(losses: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Return each level's share of the weighted loss in percent: 100 w_i l_i / sum_j w_j l_j.

    The shares add up to 100. They are all 0 where the weighted loss is 0.
    """
    weighted = [w * loss for w, loss in zip(weights, losses, strict=True)]
    total = sum(weighted)
    return [100.0 * part / total if total != 0 else 0.0 for part in weighted]


class HierarchicalLoss(DistributedMetric):
    """Average the losses of every level over all that they were computed on, on all ranks.

    `weights` are the objective's level weights, all 1 by default; `extra` names further losses in the
    mapping, "loss_variance" for instance, which become `loss/variance`. Tags: `loss/total`, `loss/h{i}`,
    `loss/unweighted`, `loss/contribution_h{i}`, `loss/nonfinite` (how many losses were NaN or infinite) and,
    where there were any, `loss/first_nonfinite_level`. Without levels there is `loss/total` alone.
    """

    def __init__(
        self, num_levels: int, weights: Sequence[float] | None = None, extra: Sequence[str] = ()
    ) -> None:
        if num_levels < 0:
            raise ConfigError(f"the number of levels must be 0 or more, got num_levels={num_levels}")
        self.num_levels = num_levels
        self.extra = tuple(extra)
        self.weights = [1.0] * num_levels if weights is None else [float(w) for w in weights]
        if len(self.weights) != num_levels:
            raise ConfigError(f"expected {num_levels} level weights, got {list(self.weights)}")
        self.levels = [f"loss_h{i}" for i in range(num_levels)]
        self.keys = ["loss", _UNWEIGHTED, *self.levels, *self.extra]
        for name in ("sums", "counts", "bad"):
            self.add_state(name, Sum(shape=(len(self.keys),)))

    def update(self, losses: Mapping[str, Any], count: Count | Mapping[str, Count] = 1) -> None:
        """Add mean losses over `count` samples or tokens.

        `losses` holds "loss" and "loss_h0", ...; where "loss_unweighted" is missing, it is the mean of the
        levels' means over the whole job. `count` may differ between keys: a mapping with the same keys.
        """
        values, given = self._values(losses)
        counts = self._counts(count, values) * given
        finite = torch.isfinite(values)
        # A mean over nothing is often NaN: with a count of zero it is no finding, it is nothing.
        seen = counts > 0
        self.sums.update(torch.where(seen, values * counts, 0.0))
        self.counts.update(counts)
        self.bad.update((seen & ~finite).to(torch.float64))

    def _values(self, losses: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the losses in the order of `keys`, with 1 for each that is there, else 0."""
        required = ["loss", *self.levels, *self.extra]
        missing = [key for key in required if key not in losses]
        if missing:
            raise ConfigError(f"expected the losses {required}, got {sorted(losses)} without {missing}")
        values = _stack({key: losses[key] for key in self.keys if key in losses})
        given, nothing = torch.ones_like(values), values.new_zeros(1)
        if _UNWEIGHTED in losses:
            return values, given
        return torch.cat([values[:1], nothing, values[1:]]), torch.cat([given[:1], nothing, given[1:]])

    def _counts(self, count: Count | Mapping[str, Count], values: Tensor) -> Tensor:
        if not isinstance(count, (Mapping, Tensor)):
            return torch.full_like(values, float(count))
        if isinstance(count, Tensor):
            return as_number("count", count).to(values.device, non_blocking=True).expand_as(values)
        given = {
            key: as_number(f"the count of {key!r}", value).to(values.device, non_blocking=True)
            for key, value in count.items()
        }
        missing = [key for key in self.levels if key not in given]
        if missing:
            raise ConfigError(f"expected a count for each of {self.levels}, got {sorted(given)}")
        everything = torch.stack([given[key] for key in self.levels]).sum()
        return torch.stack([given.get(key, everything) for key in self.keys])

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Divide the sums by the counts; {} before the first update."""
        sums, counts, bad = (states[name].value.tolist() for name in ("sums", "counts", "bad"))
        if not any(counts):
            return {}
        means = {key: s / c if c > 0 else 0.0 for key, s, c in zip(self.keys, sums, counts, strict=True)}
        seen = [means[key] for key, c in zip(self.keys, counts, strict=True) if key in self.levels and c > 0]
        if seen and not counts[self.keys.index(_UNWEIGHTED)]:
            means[_UNWEIGHTED] = sum(seen) / len(seen)
        tags = {"loss/total": means["loss"], "loss/nonfinite": sum(bad)}
        tags |= {f"loss/{key.removeprefix('loss_')}": means[key] for key in self.extra}
        return tags | self._level_tags(means, bad[2 : 2 + self.num_levels]) if self.levels else tags

    def _level_tags(self, means: Mapping[str, float], bad: Sequence[float]) -> dict[str, Any]:
        losses = [means[key] for key in self.levels]
        tags: dict[str, Any] = {"loss/unweighted": means[_UNWEIGHTED]}
        tags |= {f"loss/h{i}": loss for i, loss in enumerate(losses)}
        shares = contributions(losses, self.weights)
        tags |= {f"loss/contribution_h{i}": share for i, share in enumerate(shares)}
        first = next((i for i, n in enumerate(bad) if n > 0), None)
        return tags if first is None else {**tags, "loss/first_nonfinite_level": first}


def _stack(named: Mapping[str, Any]) -> Tensor:
    """Return numbers and tensors of one element as float64 [n], on the device of those that are on one."""
    values = named.values()
    if all(isinstance(value, Tensor) and value.numel() == 1 for value in values):
        alike = {(value.device, value.dtype) for value in values}
        if len(alike) == 1:
            return torch.stack([value.detach().reshape(()) for value in values]).to(torch.float64)
    scalars = [as_number(f"{key!r} of losses", value) for key, value in named.items()]
    device = next((s.device for s in scalars if s.device.type != "cpu"), torch.device("cpu"))
    return torch.stack([scalar.to(device, non_blocking=True) for scalar in scalars])
