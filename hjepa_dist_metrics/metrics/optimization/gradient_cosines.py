"""Whether losses pull shared parameters the same way: cosines between their gradients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.metrics.validation import as_number
from hjepa_dist_metrics.parallel.sharding.placement import is_dtensor
from hjepa_dist_metrics.states import Sum
from hjepa_dist_metrics.states.base import moved
from hjepa_dist_metrics.states.sketches.hashing import mix

_CHUNK = 1 << 20


class GradientCosines(DistributedMetric):
    """Compare the gradients of named losses with respect to the parameters that they share.

    `{prefix}/{a}_to_{b}_cosine` for each pair: 1 where both pull the same way, below 0 where a step for the
    one is a step against the other (2001.06782). Gradients are those of all samples of all ranks since the
    last log. Where `parameters` have more than `size` elements, a count sketch of them is kept (Charikar et
    al. 2002): it adds up over ranks as gradients do, and the cosine has a standard error of size^-1/2. A loss
    without a gradient has no cosine. Parameters must be whole: those of `fully_shard` are a ConfigError.

    >>> shared = nn.Linear(2, 1, bias=False)
    >>> cosines = GradientCosines(shared, ["up", "down"])
    >>> y = shared(torch.tensor([[1.0, 2.0]])).mean()
    >>> cosines.update({"up": y, "down": -3.0 * y})
    >>> round(cosines.compute()["gradients/up_to_down_cosine"].value, 6)
    -1.0
    """

    def __init__(
        self,
        parameters: nn.Module | Iterable[nn.Parameter],
        names: Sequence[str],
        prefix: str = "gradients",
        *,
        size: int = 1 << 16,
    ) -> None:
        given = parameters.parameters() if isinstance(parameters, nn.Module) else parameters
        self.parameters = [parameter for parameter in given if parameter.requires_grad]
        if len(set(names)) < 2 or len(set(names)) != len(names):
            raise ConfigError(f"expected two losses or more with names of their own, got {list(names)}")
        if not self.parameters or any(map(is_dtensor, self.parameters)):
            raise ConfigError(
                "expected parameters that are trained and whole on each rank, got "
                f"{'shards of them' if self.parameters else 'none'}: pass the modules that the losses share"
            )
        self.names, self.prefix = list(names), prefix
        elements = sum(parameter.numel() for parameter in self.parameters)
        self.size, self.is_exact = min(size, elements), elements <= size
        self.add_state("gradients", Sum(shape=(len(self.names), self.size)))

    def update(self, losses: Mapping[str, Tensor], count: Any = 1) -> None:
        """Add the gradients of losses that are means over `count` samples, before their own backward pass.

        One backward pass for each loss, which keeps the graph for the training's own.
        """
        if sorted(losses) != sorted(self.names):
            raise ConfigError(f"expected losses of {self.names}, got {sorted(losses)}")
        if bare := [name for name in self.names if not losses[name].requires_grad]:
            raise ConfigError(f"the loss {bare[0]!r} has no graph: hand losses over before they are detached")
        rows = torch.stack([self._sketch(losses[name]) for name in self.names])
        counted = moved(as_number("count", count), rows.device)
        self.gradients.update(torch.where(counted > 0, rows * counted, 0.0))

    def _sketch(self, loss: Tensor) -> Tensor:
        """Return a loss's gradient, or its count sketch, float64 [size]."""
        found = torch.autograd.grad(loss, self.parameters, retain_graph=True, allow_unused=True)
        sketch = torch.zeros(self.size, dtype=torch.float64, device=loss.device)
        start = 0
        for parameter, gradient in zip(self.parameters, found, strict=True):
            if gradient is not None:
                flat = gradient.detach().reshape(-1)
                for offset in range(0, flat.numel(), _CHUNK):
                    piece = flat[offset : offset + _CHUNK].to(sketch.device, torch.float64)
                    places = torch.arange(len(piece), device=sketch.device) + (start + offset)
                    if not self.is_exact:
                        keys = mix(places, seed=0)
                        piece, places = piece * (1 - 2 * (keys & 1)), (keys >> 1) % self.size
                    sketch.index_add_(0, places, piece)
            start += parameter.numel()
        return sketch

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the cosine of each pair that has gradients."""
        rows = states["gradients"].value
        sizes = np.abs(rows).max(axis=1)
        units = {
            name: row / size / np.linalg.norm(row / size)
            for name, row, size in zip(self.names, rows, sizes, strict=True)
            if size != 0
        }
        pairs = [pair for pair in itertools.combinations(self.names, 2) if units.keys() >= set(pair)]
        return {f"{self.prefix}/{a}_to_{b}_cosine": _cosine(units[a], units[b]) for a, b in pairs}


def _cosine(one: Any, other: Any) -> float:
    cosine = float(one @ other)
    return max(-1.0, min(1.0, cosine)) if math.isfinite(cosine) else math.nan


_cosine_entry = partial(
    Entry,
    healthy="above 0; below it one loss is improved at the other's expense",
    source="arXiv 2001.06782",
)

ENTRIES = (
    _cosine_entry(
        "gradients/{a}_to_{b}_cosine",
        "cosine of the gradients of {a} and {b}",
        "Cosine between the gradients of two losses with respect to the parameters that they share, over all "
        "samples since the last log.",
        dashboard="gradient_flow",
    ),
    _cosine_entry(
        "Train/Gradients/{a}_to_{b}_cosine",
        "cosine of the gradients of {a} and {b}",
        "Cosine between the gradients of two heads' losses with respect to the decoder that they share.",
        dashboard="dual_head_gradients",
    ),
)
