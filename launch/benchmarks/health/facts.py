"""What is true of a run, measured beside the monitor: for the oracle, and to verify that a failure took."""

from __future__ import annotations

import resource
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.health.recipe import Recipe

_NEIGHBOURS = 5
_LABELLED = 100


class Facts:
    """Measure a recipe's model at each log: `series` holds (step, numbers by name).

    `knn`: accuracy of the features of samples that are not trained on, by their nearest neighbours; `rank`,
    `spread` (of unit rows) and `norm` of these features; `embedded`, the
    spread of what the loss sees; `loss` on a fixed batch; `weights`, the parameters'
    norm, `moved`, how far they have come since the last log, over the norm; `gradient`, the norm of the
    gradients; `step`, the median seconds of a step, and `memory` in bytes.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.series: list[tuple[int, dict[str, float]]] = []
        self.seconds: list[float] = []
        self._gradient = float("nan")
        self._before = self._flat(recipe.model)

    def before_update(self, model: nn.Module) -> None:
        """Take the gradients' norm, before any clipping."""
        parts = [p.grad.double().square().sum() for p in model.parameters() if p.grad is not None]
        self._gradient = float(torch.stack(parts).sum().sqrt()) if parts else 0.0

    @torch.no_grad()
    def measure(self, step: int, recipe: Recipe) -> None:
        """Add the numbers of a step."""
        state = recipe.generator.get_state()
        with torch.random.fork_rng(devices=[]):
            numbers = self._features(recipe) | self._weights(recipe.model)
            torch.manual_seed(0)
            recipe.generator.manual_seed(0)
            numbers["loss"] = float(recipe.forward(recipe.fixed_batch()).loss)
        recipe.generator.set_state(state)
        numbers["step"] = median(self.seconds)
        numbers["memory"] = _resident_bytes()
        self.seconds.clear()
        self.series.append((step, numbers))

    def _features(self, recipe: Recipe) -> dict[str, float]:
        recipe.model.eval()
        found, more, rows = recipe.represent(), recipe.more_facts(), recipe.embed()
        if rows is not None:
            more["embedded"] = geometry(rows.double().numpy())["spread"]
        recipe.model.train()
        if found is None:
            return more
        features, labels = found[0].double().numpy(), found[1].numpy()
        return {"knn": knn_accuracy(features, labels), **geometry(features), **more}

    def _weights(self, model: nn.Module) -> dict[str, float]:
        now = self._flat(model)
        norm, move = float(now.norm()), float((now - self._before).norm())
        self._before = now
        return {"weights": norm, "moved": move / max(norm, 1e-300), "gradient": self._gradient}

    @staticmethod
    @torch.no_grad()
    def _flat(model: nn.Module) -> torch.Tensor:
        return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def knn_accuracy(features: Any, labels: Any) -> float:
    """Return the share of rows after the first 100 whose class their neighbours among these tell."""
    if not np.isfinite(features).all():
        return float("nan")
    centred = features - features[:_LABELLED].mean(axis=0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-300)
    nearest = np.argsort(-(unit[_LABELLED:] @ unit[:_LABELLED].T), axis=1, kind="stable")[:, :_NEIGHBOURS]
    votes = np.eye(int(labels.max()) + 1)[labels[nearest]].sum(axis=1)
    return float((votes.argmax(axis=1) == labels[_LABELLED:]).mean())


def geometry(features: Any) -> dict[str, float]:
    """Return entropy rank, spread of unit rows, and mean norm."""
    if not np.isfinite(features).all():
        return dict.fromkeys(("rank", "spread", "norm"), float("nan"))
    norms = np.linalg.norm(features, axis=1)
    unit = features / np.maximum(norms[:, None], 1e-300)
    centred = unit - unit.mean(axis=0)
    shares = np.linalg.svd(centred, compute_uv=False) ** 2
    total = shares.sum()
    p = shares[shares > 1e-12 * total] / total if total > 0 else np.ones(1)
    return {
        "rank": float(np.exp(-(p * np.log(p)).sum())),
        "spread": float(np.sqrt((centred**2).sum(axis=1).mean())),
        "norm": float(norms.mean()),
    }


def _resident_bytes() -> float:
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * float(resource.getpagesize())
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
