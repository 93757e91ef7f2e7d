"""The load of experts, of what the router of each mixture layer says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics import ExpertLoad
from hjepa_dist_metrics.metrics.validation import require_features
from hjepa_dist_metrics.monitor.observer import Observer
from hjepa_dist_metrics.monitor.observers.internals.sketches import drawing

# Of one layer, of several by name, or of several in order, as Hugging Face's models return them.
Layers = Tensor | Mapping[str, Tensor] | Sequence[Tensor]


class ExpertFigure(ExpertLoad):
    """Draw `experts/load` from what `ExpertLoad` counts."""

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the drawing; {} before the first token."""
        shares = {
            layer.layer: (layer.counts / layer.counts.mean()).tolist()
            for layer in self.layer_loads(states)
            if layer.counts.sum()
        }
        if not shares:
            return {}
        from hjepa_dist_metrics.figures.internals.pictures import expert_map

        return {"experts/load": drawing(partial(expert_map, shares))}


class Experts(Observer):
    """Feed `ExpertLoad` on steps that log scalars, from the router's logits and the experts chosen.

    `router_logits` [..., experts] are the scores before softmax, of the tokens of this rank; `expert_choices`
    int [..., k] the experts that the tokens go to, by their numbers in the whole layer, by default the
    `experts_per_token` with the largest logits.
    """

    takes = ("router_logits",)
    also = ("expert_choices", "experts_per_token")
    family = None

    def observe(
        self, router_logits: Layers, expert_choices: Layers | None = None, experts_per_token: int = 1
    ) -> None:
        """Add what a step hands over, on the steps that log it."""
        due = [family for family in ("scalars", "figures") if self.scope.is_due(family)]
        if "figures" in due and not self.scope.config.figures.enabled:
            due.remove("figures")
        if not due:
            return
        logits = _by_name(router_logits)
        for name, tensor in logits.items():
            require_features(f"router_logits of {name!r}", tensor)
        most = min((tensor.shape[-1] for tensor in logits.values()), default=1)
        if not 1 <= experts_per_token <= most:
            raise ConfigError(f"expected 1 to {most} experts a token, got {experts_per_token}")
        if expert_choices is None:
            choices = {name: tensor.topk(experts_per_token).indices for name, tensor in logits.items()}
        else:
            choices = _by_name(expert_choices)
        if choices.keys() != logits.keys():
            raise ConfigError(
                f"expected expert_choices of the layers {sorted(logits)}, got those of {sorted(choices)}"
            )
        sizes = {tensor.shape[-1] for tensor in logits.values()}
        if len(sizes) != 1:
            raise ConfigError(f"expected as many experts in every layer, got {sorted(sizes)}")
        for family in due:
            self._metric(family, *sizes).update(choices, logits)

    def _metric(self, family: str, experts: int) -> ExpertLoad:
        if family == "figures":
            make_figure = partial(ExpertFigure, experts)
            return self.scope.metric("expert_figure", ExpertFigure, make_figure, family)
        per_layer = self.scope.config.experts.per_layer
        return self.scope.metric("experts", ExpertLoad, partial(ExpertLoad, experts, per_layer=per_layer))


def _by_name(layers: Layers) -> dict[str, Tensor]:
    """Return tensors by the layer's name; those in order go by their number."""
    if isinstance(layers, Tensor):
        return {"experts": layers}
    if isinstance(layers, Mapping):
        return dict(layers)
    return {f"layer{number}": layer for number, layer in enumerate(layers)}
