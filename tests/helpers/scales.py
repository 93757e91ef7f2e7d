"""Feed any registered metric the same data at another scale, in another type."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hjepa_dist_metrics import metrics
from hjepa_dist_metrics.metrics import DistributedMetric
from hjepa_dist_metrics.values import Histogram, Scalar, Value
from tests.helpers.contract import Example, compute


@dataclass(frozen=True)
class Scaling:
    """Say what of a metric's input has a scale, and how its numbers follow it.

    `arguments` are the places of the arguments of `update` that are scaled, `degrees` the power of the scale
    that a tag follows, by regular expression: 0 for the rest. `free` matches tags that compare their input
    with a number that has the input's unit: they must only be finite.
    """

    arguments: tuple[int, ...] = (0, 1)
    degrees: Mapping[str, int] = field(default_factory=dict)
    free: str = "$^"

    def degree(self, tag: str) -> int:
        """Return the power of the scale that a tag follows."""
        if tag.endswith((" nonfinite", " count")):  # of a histogram
            return 0
        return next((degree for pattern, degree in self.degrees.items() if re.search(pattern, tag)), 0)


ALL = {"": 1}
FEATURES = {r"feat_(mean|std|norm|min|max)$": 1}
SCALINGS: dict[type[DistributedMetric], Scaling] = {
    metrics.ActivationStatistics: Scaling((0, 1), {"rms|absmax": 1}),
    metrics.AttentionStatistics: Scaling((0,), {"logit": 1}, free="entropy|sink"),
    metrics.HierarchicalLoss: Scaling((0,), {"contribution|nonfinite": 0, **ALL}),
    metrics.WeightedMean: Scaling((0,), ALL),
    metrics.NamedMeans: Scaling((0,), ALL),
    metrics.ReplicatedScalars: Scaling((0,), ALL),
    metrics.Collapse: Scaling((0,), {"vicreg_covariance": 4, "rms_norm": 1}, free="vicreg_variance|sigreg"),
    metrics.GradientClipping: Scaling((0,), {"global_norm": 1}),
    metrics.TrainingStability: Scaling((0,), {"smoothness|slope|height": 1}),
    metrics.HierarchyFeatures: Scaling((0,), FEATURES),
    metrics.PredictionQuality: Scaling((0, 1), {"l2_distance": 1}),
    metrics.ViewAgreement: Scaling((0,), {}, free="lidar"),
    metrics.LinearProbe: Scaling((0,)),
    metrics.KNNProbe: Scaling((0,)),
    metrics.EMADynamics: Scaling((0, 1), {"parameter_divergence": 1}),
    metrics.Updates: Scaling((), {"ratio": 0, **ALL}),
    metrics.GradientNoise: Scaling((0, 2)),
    metrics.GradientFlow: Scaling((), {"zero_fraction|nonfinite|ratio": 0, **ALL}),
    metrics.EpochLoss: Scaling((0,), ALL),
    metrics.ModalityEmbeddings: Scaling((0,), {"nonfinite": 0, **ALL}),
    metrics.ModalityAlignment: Scaling((0,)),
    metrics.Reconstruction: Scaling((0,), free="psnr|PSNR"),
    metrics.SemanticSimilarity: Scaling((0, 1)),
    metrics.FrameQuality: Scaling((0,), {"nonfinite": 0, **ALL}),
    metrics.HeadLosses: Scaling((0,), {"ratio|active": 0, **ALL}),
    metrics.HeadGradients: Scaling((), {"ratio": 0, **ALL}),
    metrics.HeadParameters: Scaling((), ALL),
}


@dataclass(frozen=True)
class Size:
    """Multiply data by 2^exponent in a type; `restored` gives the same data at its own scale, in float64."""

    exponent: int
    dtype: torch.dtype
    restored: bool = False

    def __call__(self, data: Any) -> Any:
        """Return numbers, tensors, modules and containers of them at this size."""
        if isinstance(data, Mapping):
            return {name: self(value) for name, value in data.items()}
        if isinstance(data, (list, tuple)):
            return [self(value) for value in data]
        if isinstance(data, nn.Module):
            for parameter in data.parameters():
                parameter.data = self(parameter.data)
            return data
        if isinstance(data, float):
            return math.ldexp(data, 0 if self.restored else self.exponent)
        if not (isinstance(data, Tensor) and data.is_floating_point()):
            return data
        sized = torch.ldexp(data.double(), torch.tensor(self.exponent)).to(self.dtype)
        return torch.ldexp(sized.double(), torch.tensor(-self.exponent)) if self.restored else sized


def read_at(example: Example, scaling: Scaling, size: Size, pieces: list[slice]) -> dict[str, Value]:
    """Return what a metric makes of the example's data at a size."""
    metric = example.make()
    _patch(metric, scaling, size)
    for piece in pieces:
        example.feed(metric, piece)
    return compute(metric)


def _patch(metric: Any, scaling: Scaling, size: Size) -> None:
    """Scale what `update` gets, and the parameters and gradients that a metric watches."""
    update, around = metric.update, getattr(metric, "around", None)

    def updated(*args: Any, **kwargs: Any) -> None:
        with _sized_parameters(metric, size):
            update(*(size(arg) if i in scaling.arguments else arg for i, arg in enumerate(args)), **kwargs)

    @contextmanager
    def sized_around() -> Iterator[None]:
        with _sized_parameters(metric, size), around():
            yield

    if around is None:
        metric.update = updated
    else:
        metric.around = sized_around


@contextmanager
def _sized_parameters(metric: Any, size: Size) -> Iterator[None]:
    """Put the parameters that a metric watches, and their gradients, to a size for a while."""
    watched = [slot.parameter for held in vars(metric).values() for slot in getattr(held, "slots", ())]
    before = [(parameter.data, parameter.grad) for parameter in watched]
    for parameter, (data, gradient) in zip(watched, before, strict=True):
        parameter.grad = None
        parameter.data = size(data)
        parameter.grad = None if gradient is None else size(gradient)
    yield
    for parameter, (data, _) in zip(watched, before, strict=True):
        parameter.grad = None
        parameter.data = data


def numbers(values: Mapping[str, Value]) -> dict[str, float]:
    """Return the numbers among values, and of histograms what must be finite or constant."""
    found = {tag: value.value for tag, value in values.items() if isinstance(value, Scalar)}
    for tag, value in values.items():
        if isinstance(value, Histogram):
            found[f"{tag} nonfinite"] = float(value.nonfinite)
            found[f"{tag} count"] = float(value.counts.sum())
    return found
