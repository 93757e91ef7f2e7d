"""Labelled rows as probes keep them: checked, one a label, float32 with a power of two beside them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.ssl.formulas.rows import pool
from hjepa_dist_metrics.metrics.validation import described, require_features
from hjepa_dist_metrics.states.base import moved
from hjepa_dist_metrics.states.rows import row_mask
from hjepa_dist_metrics.states.scales import power_of_two

# Labels of samples that have none; the second is torch's `ignore_index`.
UNLABELLED = (-1, -100)


class LabelledRows(NamedTuple):
    """Hold rows [n, D] with labels int64 [n] on their device, and which of them count."""

    rows: Tensor
    labels: Tensor
    counted: Tensor


def labelled_rows(name: str, features: Any, labels: Any, valid: Any, dim: int) -> LabelledRows:
    """Return features [N, D] or [B, N, D] as rows, one a label; ConfigError where the two do not fit.

    Labels [B] of features [B, N, D] are of whole samples, whose rows are means over their valid tokens;
    labels [B, N] are of tokens.
    """
    require_features("features", features)
    if features.ndim not in (2, 3) or features.shape[-1] != dim:
        shape = list(features.shape)
        raise ConfigError(f"{name} expected features [N, {dim}] or [B, N, {dim}], got shape {shape}")
    _require_labels(name, features, labels)
    x = features.detach()
    marks = moved(labels.detach(), x.device, torch.int64)
    kept = None if valid is None else row_mask(valid, x.shape[:-1], x.device)
    if x.ndim == 3 and marks.ndim == 1:
        x, kept = pool(x, kept)
    rows, marks = x.reshape(-1, dim), marks.reshape(-1)
    counted = (marks != UNLABELLED[0]) & (marks != UNLABELLED[1])
    return LabelledRows(rows, marks, counted if kept is None else counted & kept.reshape(-1))


def _require_labels(name: str, features: Tensor, labels: Any) -> None:
    whole = isinstance(labels, Tensor) and not (labels.is_floating_point() or labels.is_complex())
    shapes = {tuple(features.shape[:1]), tuple(features.shape[:-1])}
    if whole and labels.dtype != torch.bool and tuple(labels.shape) in shapes:
        return
    expected = " or ".join(str(list(shape)) for shape in sorted(shapes, key=len))
    raise ConfigError(
        f"{name} expected labels as whole numbers {expected}, one a sample or one a token of features "
        f"{list(features.shape)}, got {described(labels)}"
    )


def require_in_range(name: str, lowest: float, highest: float, num_classes: int | None) -> None:
    """Raise ConfigError where a label is none of a probe's classes."""
    most = torch.iinfo(torch.int64).max if num_classes is None else num_classes - 1
    if lowest < 0 or highest > most:
        wrong = int(lowest if lowest < 0 else highest)
        allowed = "0 or more" if num_classes is None else f"0 to {num_classes - 1}"
        raise ConfigError(
            f"{name} got the label {wrong}, expected {allowed}; samples without a label have -1 or -100"
        )


def scaled_rows(rows: Tensor) -> Tensor:
    """Return rows [n, D] as [n, D + 1]: each divided by 2^e to be below 1, and e, which is NaN where a row
    is not finite. Rows of any size keep float32's digits so.
    """
    rows = rows.to(torch.float64)
    largest = rows.abs().amax(dim=1)
    finite = torch.isfinite(largest)
    exponent = torch.frexp(torch.where(finite, largest, 0.0)).exponent.to(torch.float64).clamp(-1022, 1022)
    scaled = torch.where(finite[:, None], rows * power_of_two(-exponent)[:, None], 0.0)
    return torch.cat([scaled, torch.where(finite, exponent, torch.nan)[:, None]], dim=1).to(torch.float32)


def from_scaled(rows: Tensor) -> Tensor:
    """Return scaled rows without their exponents, float64 [n, D]."""
    return rows[:, :-1].to(torch.float64)
