"""Losses of a hierarchical objective: exact means over the job, and what each level contributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.catalog.limits import NOTHING
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.buffered import BufferedMetric, keepable, number_row
from hjepa_dist_metrics.metrics.validation import as_number, device_of
from hjepa_dist_metrics.states import Sum
from hjepa_dist_metrics.states.base import moved

Count = float | int | Tensor
_UNWEIGHTED = "loss_unweighted"
# Losses in the order of the keys, their counts, and whether "loss_unweighted" is among them.
_Step = tuple[Tensor, float | Tensor, bool]


def contributions(losses: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Return each level's share of the weighted loss in percent: 100 w_i l_i / sum_j w_j l_j.

    The shares add up to 100. They are all 0 where the weighted loss is 0.
    """
    weighted = [w * loss for w, loss in zip(weights, losses, strict=True)]
    total = sum(weighted)
    return [100.0 * part / total if total != 0 else 0.0 for part in weighted]


class HierarchicalLoss(BufferedMetric[_Step]):
    """Average the losses of every level over all that they were computed on, on all ranks.

    `weights` are the objective's level weights, all 1 by default; `extra` names further losses in the
    mapping, "loss_variance" for instance, which become `loss/variance`. Tags: `loss/total`, `loss/h{i}`,
    `loss/unweighted`, `loss/contribution_h{i}`, `loss/nonfinite` (how many losses were NaN or infinite) and,
    where there were any, `loss/first_nonfinite_level`. Without levels there is `loss/total` alone.

    >>> loss = HierarchicalLoss(num_levels=2, weights=[1.0, 0.5])
    >>> loss.update({"loss": 2.5, "loss_h0": 2.0, "loss_h1": 1.0}, count=32)
    >>> loss.update({"loss": 5.0, "loss_h0": 4.0, "loss_h1": 2.0}, count=16)  # of 16 samples only
    >>> values = loss.compute()
    >>> round(values["loss/total"], 4), values["loss/contribution_h1"]
    (3.3333, 20.0)
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
        required = ["loss", *self.levels, *self.extra]
        missing = [key for key in required if key not in losses]
        if missing:
            raise ConfigError(f"expected the losses {required}, got {sorted(losses)} without {missing}")
        values = _stack({key: losses[key] for key in self.keys if key in losses})
        self._defer((values, self._counts(count), _UNWEIGHTED in losses))

    def _counts(self, count: Count | Mapping[str, Count]) -> float | Tensor:
        """Return one count for all keys, or one for each, float64 [keys]."""
        if not isinstance(count, Mapping):
            return keepable("count", count)
        given = {key: as_number(f"the count of {key!r}", value) for key, value in count.items()}
        missing = [key for key in self.levels if key not in given]
        if missing:
            raise ConfigError(f"expected a count for each of {self.levels}, got {sorted(given)}")
        device = device_of(given.values())
        levels = torch.stack([moved(given[key], device) for key in self.levels])
        everything = levels.sum()
        return torch.stack([moved(given.get(key, everything), device) for key in self.keys])

    def _flush(self, steps: Sequence[_Step]) -> None:
        for whole in (True, False):
            same = [(values, counts) for values, counts, has_all in steps if has_all is whole]
            if same:
                self._add(*zip(*same, strict=True), whole=whole)

    def _add(self, losses: Sequence[Tensor], counted: Sequence[float | Tensor], *, whole: bool) -> None:
        """Add losses of several steps in the order of `keys`, without "loss_unweighted" unless `whole`."""
        device = device_of([*losses, *(c for c in counted if isinstance(c, Tensor))])
        values = torch.stack([moved(loss, device) for loss in losses])
        counts = self._count_rows(counted, device)
        if not whole:
            nothing = values.new_zeros((len(values), 1))
            values = torch.cat([values[:, :1], nothing, values[:, 1:]], dim=1)
            counts = torch.cat([counts[:, :1], nothing, counts[:, 2:]], dim=1)
        # A mean over nothing is often NaN: with a count of zero it is no finding, it is nothing.
        seen = counts > 0
        self.sums.update(torch.where(seen, values * counts, 0.0))
        self.counts.update(counts)
        self.bad.update((seen & ~torch.isfinite(values)).to(torch.float64))

    def _count_rows(self, counted: Sequence[float | Tensor], device: torch.device) -> Tensor:
        """Return the steps' counts, float64 [steps, keys]."""
        size = len(self.keys)
        if all(not isinstance(count, Tensor) or count.ndim == 0 for count in counted):
            return number_row(counted, device)[:, None].expand(-1, size)
        rows = [c if isinstance(c, Tensor) else number_row([c], device) for c in counted]
        return torch.stack([moved(row, device).expand(size) for row in rows])

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
        kinds = {(value.device, value.dtype) for value in values}
        if len(kinds) == 1:
            return torch.stack([value.detach().reshape(()) for value in values]).to(torch.float64)
    scalars = [as_number(f"{key!r} of losses", value) for key, value in named.items()]
    device = device_of(scalars)
    return torch.stack([moved(scalar, device) for scalar in scalars])


_loss = partial(Entry, dashboard="loss")

ENTRIES = (
    _loss(
        "loss/total",
        "total loss",
        "The objective, the weighted sum of its parts: mean over all samples of all ranks.",
        healthy="falls, then flattens; a fall alone proves little: read it beside collapse/effective_rank",
    ),
    _loss(
        "loss/h{i}",
        "loss of level {i}",
        "Unweighted loss of hierarchy level i (0 is the finest), mean over all samples of all ranks.",
        healthy="each level falls; a level that never does is too hard or broken",
    ),
    _loss(
        "loss/unweighted",
        "unweighted loss",
        "Mean of the levels' losses without the hierarchy weights: comparable between weightings.",
        healthy="falls with loss/total",
    ),
    _loss(
        "loss/contribution_h{i}",
        "share of level {i} in the total loss",
        "w_i * loss_i / sum_j(w_j * loss_j) * 100.",
        unit="%",
        healthy="the levels add up to 100; one far above 90 leaves the others untrained",
        deviation="often computed without the weights; such shares do not add up to 100",
    ),
    _loss(
        "loss/convergence_rate_h{i}",
        "speed at which level {i} converges",
        "Relative change of the level's loss per step, over the window between two logs.",
        unit="1/step",
        healthy="negative while the level learns, near 0 once it has converged",
    ),
    _loss(
        "loss/convergence_rate",
        "speed of convergence",
        "Relative change of the total loss per step, over the window between two logs.",
        unit="1/step",
        healthy="negative while learning, near 0 at the end",
    ),
    _loss(
        "loss/variance",
        "variance term",
        "VICReg's variance term where the objective has one, mean over all samples of all ranks.",
        source="arXiv 2105.04906",
        healthy="falls towards 0",
    ),
    _loss(
        "loss/covariance",
        "covariance term",
        "VICReg's covariance term where the objective has one, mean over all samples of all ranks.",
        source="arXiv 2105.04906",
        healthy="small",
    ),
    _loss(
        "loss/nonfinite",
        "nonfinite losses",
        "How many losses were NaN or infinite since the last log, on all ranks.",
        healthy="0",
        bounds=NOTHING,
    ),
    _loss(
        "loss/first_nonfinite_level",
        "first level with a nonfinite loss",
        "Number of the finest level whose loss was NaN or infinite; written only when there was one.",
        healthy="absent",
    ),
    Entry("train/loss", "training loss", "The total loss, under its short name.", healthy="falls"),
    Entry(
        "train_epoch/loss",
        "training loss of the epoch",
        "Mean of the total loss over all samples of the epoch.",
        healthy="falls from epoch to epoch",
    ),
    Entry(
        "val/loss",
        "validation loss",
        "Total loss on held-out samples, each counted once though samplers pad.",
        healthy="falls with train_epoch/loss",
        dashboard="loss",
    ),
)
