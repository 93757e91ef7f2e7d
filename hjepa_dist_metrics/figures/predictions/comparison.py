"""Predictions against targets, token by token."""

from __future__ import annotations

import numpy as np
import torch

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.figures.inputs import ArrayLike, Floats, host, tokens
from hjepa_dist_metrics.metrics.ssl.formulas.rows import unit_rows


def cosines(predictions: ArrayLike, targets: ArrayLike) -> Floats:
    """Return the cosine between prediction and target of each token, [B, N], of [B, N, D] each."""
    predicted, wanted = matching(predictions, targets)
    similar: Floats = (_unit(predicted) * _unit(wanted)).sum(axis=-1).clip(-1.0, 1.0)
    return similar


def squared_errors(predictions: ArrayLike, targets: ArrayLike) -> Floats:
    """Return each token's mean squared difference over its features, [B, N]."""
    predicted, wanted = matching(predictions, targets)
    error: Floats = ((predicted - wanted) ** 2).mean(axis=-1)
    return error


def matching(predictions: ArrayLike, targets: ArrayLike) -> tuple[Floats, Floats]:
    """Return both as [B, N, D]; ConfigError unless they have one shape."""
    predicted, wanted = tokens(predictions, "predictions"), tokens(targets, "targets")
    if predicted.shape != wanted.shape:
        raise ConfigError(
            f"predictions {list(predicted.shape)} and targets {list(wanted.shape)} differ in shape"
        )
    return predicted, wanted


def _unit(rows: Floats) -> Floats:
    return host(unit_rows(torch.from_numpy(np.ascontiguousarray(rows))))
