"""What a loop hands to `TrainingMonitor.step`, checked by type, shape and dtype: no wait for a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.validation import described, require_features


def require_samples(samples: Any) -> None:
    """Raise ConfigError unless `samples` is a whole number from 0 on, or a tensor of one integer."""
    if isinstance(samples, Tensor):
        whole = samples.numel() == 1 and not (samples.is_floating_point() or samples.is_complex())
    else:
        whole = isinstance(samples, Real) and float(samples) >= 0 and float(samples).is_integer()
    if not whole:
        raise ConfigError(
            "samples must be this rank's number of samples in the step, a whole number from 0 on, "
            f"got {described(samples)}"
        )


def require_one_mask_a_sample(mask: Tensor, samples: Any) -> None:
    """Raise ConfigError where there are more masks than samples; fewer are those of a micro-batch."""
    if not isinstance(samples, Tensor) and len(mask) > samples:
        raise ConfigError(
            f"got {len(mask)} masks [B, N] for {samples} samples, expected one a sample at most. Several "
            "target blocks of a sample count together: mask.view(samples, -1, N).any(dim=1); leave padded "
            "samples out: mask[valid]"
        )


def step_arguments(given: Mapping[str, Any], expected: set[str]) -> dict[str, Any]:
    """Return what a step hands over, checked: predictions and targets as levels, nothing that is None."""
    if unknown := given.keys() - expected:
        raise ConfigError(
            f"step got {', '.join(sorted(unknown))}, which no observer takes; expected some of "
            f"{', '.join(sorted(expected))}"
        )
    arguments = {name: value for name, value in given.items() if value is not None}
    require_samples(arguments.get("samples"))
    for name in ("predictions", "targets", "prediction_valid"):
        if name in arguments:
            arguments[name] = as_levels(arguments[name])
    require_pairs(arguments.get("predictions"), arguments.get("targets"))
    return arguments


def as_levels(value: Any) -> Any:
    """Return levels as a list: one tensor is one level."""
    return [value] if isinstance(value, Tensor) else value


def require_pairs(predictions: Any, targets: Any) -> None:
    """Raise ConfigError unless predictions and targets come together, as floating-point tensors."""
    given = {"predictions": predictions, "targets": targets}
    for name, other in (("predictions", "targets"), ("targets", "predictions")):
        levels = given[name]
        if levels is None:
            continue
        if given[other] is None:
            raise ConfigError(f"got {name} without {other}: hand both to `step`, or neither")
        if not isinstance(levels, Sequence):
            raise ConfigError(f"{name} must be a tensor or a list of one a level, got {described(levels)}")
        for i, level in enumerate(levels):
            require_features(f"{name} of level {i}", level)
