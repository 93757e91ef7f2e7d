"""Load of the experts of mixture layers: who gets the tokens of the whole job."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.metrics.validation import described, require_features
from hjepa_dist_metrics.states import NamedRows, Sum
from hjepa_dist_metrics.states.rows import row_mask
from hjepa_dist_metrics.values import Text

_NAMED = 3


@dataclass(frozen=True)
class LayerLoad:
    """Hold how the tokens of a layer were dealt out: `counts` int64 [experts], of `tokens` tokens.

    `dropped` choices went to no expert. `routing_entropy` is the mean entropy of the router's probabilities
    over the logarithm of the number of experts, NaN where they were not handed over.
    """

    layer: str
    counts: npt.NDArray[np.int64]
    dropped: int
    tokens: int
    routing_entropy: float

    @property
    def dead(self) -> int:
        """Return the number of experts without a token."""
        return int((self.counts == 0).sum())

    @property
    def overload(self) -> float:
        """Return the busiest expert's load over the mean, NaN without load."""
        total = int(self.counts.sum())
        return float(self.counts.max()) * len(self.counts) / total if total else math.nan

    @property
    def entropy(self) -> float:
        """Return the entropy of the load in nats, NaN without load."""
        share = self.counts[self.counts > 0] / max(int(self.counts.sum()), 1)
        return float(-(share * np.log(share)).sum()) if len(share) else math.nan


class ExpertLoad(DistributedMetric):
    """Count how many tokens each expert of each mixture layer gets, over all ranks.

    Experts go by their numbers in the whole layer, wherever they are. In an expert-parallel job count either
    the choices of each rank's own tokens, `update`, or what each rank's experts receive, `update_received`:
    both give the same numbers.

    Tags under `experts/`: `utilization`, the share of all experts of all layers with a token, and the number
    of `dead_experts`; `overload_factor_median` and `_max` over the layers, the load of the busiest expert
    over the mean; `load_entropy_median` and `_min`, the entropy of the load over its largest value, the
    logarithm of the number of experts; `effective_experts_median`, e to the entropy of the load;
    `routing_entropy`, of the router's probabilities for a token, mean over tokens and layers, over its
    largest value; `dropped_fraction`, choices of no expert; `num_experts` and `experts_per_token`; the texts
    `busiest` and `dead`. `per_layer` adds `{layer}_overload_factor`, `_load_entropy` and `_dead_experts`.
    Counts are exact up to 2^53. With 0 experts or a choice that is no integer it raises ConfigError; numbers
    outside of 0 ... num_experts - 1 count as dropped, as -1 usually says.

    >>> load = ExpertLoad(num_experts=4)
    >>> load.update(torch.tensor([[0, 1], [0, 1], [0, 2]]), layer="layers.3")  # three tokens
    >>> load.compute()["experts/overload_factor_max"]
    2.0
    >>> load.compute()["experts/dead"].markdown
    '`layers.3`: experts 3'
    """

    def __init__(self, num_experts: int, *, per_layer: bool = False) -> None:
        if not isinstance(num_experts, int) or num_experts < 1:
            raise ConfigError(f"expected num_experts of 1 or more, got {num_experts!r}")
        self.num_experts, self.per_layer = num_experts, per_layer
        # Tokens of each expert, and choices of no expert.
        self.add_state("load", NamedRows(Sum))
        # Tokens, sum of their relative entropies, tokens that have one.
        self.add_state("routing", NamedRows(Sum))

    def update(
        self,
        choices: Tensor | Mapping[str, Tensor],
        router_logits: Tensor | Mapping[str, Tensor] | None = None,
        *,
        layer: str = "experts",
        valid: Tensor | None = None,
    ) -> None:
        """Add the experts that tokens chose, int [..., k], of one layer or by name.

        `router_logits` [..., num_experts] are the router's scores before softmax; `valid` bool [...] leaves
        tokens out.
        """
        if isinstance(choices, Mapping):
            for name, chosen in choices.items():
                logits = router_logits[name] if isinstance(router_logits, Mapping) else router_logits
                self._add(name, chosen, logits, valid)
            return
        if isinstance(router_logits, Mapping):
            raise ConfigError("router_logits by layer go with choices by layer")
        self._add(layer, choices, router_logits, valid)

    def _add(self, layer: str, choices: Tensor, logits: Tensor | None, valid: Tensor | None) -> None:
        if not isinstance(choices, Tensor) or choices.dtype.is_floating_point or choices.dtype == torch.bool:
            raise ConfigError(f"choices of {layer!r} must be integers [..., k], got {described(choices)}")
        chosen = choices.detach().to(torch.int64)
        chosen = chosen[:, None] if chosen.ndim == 1 else chosen
        lead = chosen.shape[:-1]
        counted = torch.ones(lead, dtype=torch.bool, device=chosen.device)
        if valid is not None:
            counted = row_mask(valid, lead, chosen.device)
        inside = (chosen >= 0) & (chosen < self.num_experts)
        place = torch.where(inside, chosen, self.num_experts)
        weight = counted[..., None].expand_as(chosen).reshape(-1).to(torch.int64)
        counts = torch.zeros(self.num_experts + 1, dtype=torch.int64, device=chosen.device)
        counts = counts.index_add(0, place.reshape(-1), weight)
        self.load.update(layer, counts.to(torch.float64)[None])
        tokens = counted.sum().to(torch.float64)
        entropy, known = (
            (torch.zeros_like(tokens),) * 2 if logits is None else self._entropy(layer, logits, counted)
        )
        self.routing.update(layer, torch.stack([tokens, entropy, known])[None])

    def _entropy(self, layer: str, logits: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        require_features(f"router_logits of {layer!r}", logits)
        if tuple(logits.shape) != (*counted.shape, self.num_experts):
            raise ConfigError(
                f"expected router_logits of {layer!r} of shape {[*counted.shape, self.num_experts]}, "
                f"got {list(logits.shape)}"
            )
        logs = F.log_softmax(logits.detach().to(torch.float64), dim=-1)
        weights = logs.exp()
        entropy = -torch.where(weights > 0, weights * logs, weights).sum(dim=-1)
        scale = math.log(self.num_experts) if self.num_experts > 1 else 1.0
        return torch.where(counted, entropy, 0.0).sum() / scale, counted.sum().to(torch.float64)

    def update_received(
        self,
        received: Tensor | Sequence[int],
        held: Sequence[int],
        *,
        layer: str = "experts",
        tokens: int | Tensor = 0,
        dropped: int | Tensor = 0,
    ) -> None:
        """Add how many tokens this rank's experts received, int [len(held)]; `held` are their numbers.

        `tokens` are those of this rank before they were sent, for `experts_per_token`.
        """
        counts = torch.as_tensor(received)
        if counts.dtype.is_floating_point or tuple(counts.shape) != (len(held),):
            raise ConfigError(
                f"expected integers [{len(held)}], one for each expert held, got {described(received)}"
            )
        if any(not 0 <= int(number) < self.num_experts for number in held):
            raise ConfigError(f"expected experts 0 to {self.num_experts - 1}, got held={list(held)}")
        block = torch.zeros(self.num_experts + 1, dtype=torch.float64, device=counts.device)
        for column, number in enumerate(held):
            block[int(number)] += counts[column]
        block[-1] += dropped
        self.load.update(layer, block[None])
        routing = torch.zeros(3, dtype=torch.float64, device=counts.device)
        routing[0] += tokens
        self.routing.update(layer, routing[None])

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tags; {} before the first token."""
        layers = [layer for layer in self.layer_loads(states) if layer.counts.sum() or layer.dropped]
        if not layers:
            return {}
        tags = self._summary(layers) | _texts(layers)
        if self.per_layer:
            for layer in layers:
                tags[f"experts/{layer.layer}_overload_factor"] = layer.overload
                tags[f"experts/{layer.layer}_load_entropy"] = self._relative(layer.entropy)
                tags[f"experts/{layer.layer}_dead_experts"] = layer.dead
        return tags

    def layer_loads(self, states: Mapping[str, Any]) -> list[LayerLoad]:
        """Return how the tokens of each layer were dealt out."""
        routing = {name: rows.value for name, rows in states["routing"].items()}
        found = []
        for name, rows in states["load"].items():
            counts = rows.value.astype(np.int64)
            tokens, entropy, known = routing[name]
            mean = float(entropy / known) if known else math.nan
            found.append(LayerLoad(name, counts[:-1], int(counts[-1]), int(tokens), mean))
        return found

    def _relative(self, entropy: float) -> float:
        return entropy / math.log(self.num_experts) if self.num_experts > 1 else 1.0

    def _summary(self, layers: Sequence[LayerLoad]) -> dict[str, Any]:
        dead, experts = sum(layer.dead for layer in layers), self.num_experts * len(layers)
        overload = np.array([layer.overload for layer in layers])
        entropy = np.array([layer.entropy for layer in layers])
        choices = sum(int(layer.counts.sum()) + layer.dropped for layer in layers)
        tokens = sum(layer.tokens for layer in layers)
        tags: dict[str, Any] = {
            "experts/num_experts": self.num_experts,
            "experts/utilization": 1.0 - dead / experts,
            "experts/dead_experts": dead,
            "experts/overload_factor_median": np.median(overload),
            "experts/overload_factor_max": overload.max(),
            "experts/load_entropy_median": self._relative(float(np.median(entropy))),
            "experts/load_entropy_min": self._relative(float(entropy.min())),
            "experts/effective_experts_median": math.exp(float(np.median(entropy))),
            "experts/dropped_fraction": sum(layer.dropped for layer in layers) / choices,
        }
        if tokens:
            tags["experts/experts_per_token"] = choices / tokens
        known = [layer for layer in layers if not math.isnan(layer.routing_entropy)]
        if known:
            weights = [layer.tokens for layer in known]
            tags["experts/routing_entropy"] = np.average(
                [layer.routing_entropy for layer in known], weights=weights
            )
        return tags


def _texts(layers: Sequence[LayerLoad]) -> dict[str, Text]:
    """Return which layers and experts the numbers over all layers come from."""
    known = [layer for layer in layers if layer.counts.sum()]
    texts: dict[str, Text] = {}
    if known:
        worst = max(known, key=lambda layer: layer.overload)
        share = 100 * worst.counts.max() / worst.counts.sum()
        expert = int(worst.counts.argmax())
        texts["experts/busiest"] = Text(f"`{worst.layer}`, expert {expert}: {share:.3g} % of the load")
    dead = sorted((layer for layer in known if layer.dead), key=lambda layer: -layer.dead)
    if dead:
        shown = [f"`{layer.layer}`: {_numbers(layer.counts)}" for layer in dead[:_NAMED]]
        more = f", and {len(dead) - _NAMED} layers more" if len(dead) > _NAMED else ""
        texts["experts/dead"] = Text("; ".join(shown) + more)
    return texts


def _numbers(counts: npt.NDArray[np.int64]) -> str:
    """Return the experts without load, the first eight by number."""
    dead = np.flatnonzero(counts == 0)
    more = f" and {len(dead) - 8} more" if len(dead) > 8 else ""
    return f"experts {', '.join(map(str, dead[:8]))}{more}"
