"""Examples of every metric, and what it takes to run one over ranks and batches.

A metric joins the contract by an entry in `EXAMPLES`: how to make it, and how to feed it a range of samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hjepa_dist_metrics import metrics
from hjepa_dist_metrics.metrics import DistributedMetric, MetricCollection
from hjepa_dist_metrics.parallel import ProcessContext
from hjepa_dist_metrics.values import Histogram, Image, Scalar, Text, Value
from tests.helpers.splits import Split, parts

DIM = 4
MOST = 400
MOST_STEPS = 40


@dataclass(frozen=True)
class Example:
    """Show how to feed a metric: `feed(metric, piece)` gives it the samples of a slice.

    `replicated`: every rank sees every step, as a learning rate does, instead of its share of the samples.
    `tags` keeps the comparison over splits to these tags, where the others are about ranks themselves.
    `rank_states` names states that hold something of each rank's own, its batches for instance.
    """

    make: Callable[[], DistributedMetric]
    feed: Callable[[Any, slice], None]
    replicated: bool = False
    tags: tuple[str, ...] | None = None
    rank_states: tuple[str, ...] = ()
    tolerance: float = 1e-5


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


FEATURES = torch.randn(MOST, DIM, generator=_generator(0)) + 0.5
VALID = torch.rand(MOST, generator=_generator(1)) < 0.8
LOSSES = torch.rand(MOST, 3, generator=_generator(2), dtype=torch.float64)
NORMS = torch.rand(MOST, generator=_generator(3), dtype=torch.float64) * 2

LABELS = torch.randint(0, 3, (MOST,), generator=_generator(8))
MASKS = torch.rand(MOST, 36, generator=_generator(4)) < 0.5


def _feed_losses(metric: Any, piece: slice) -> None:
    batch = LOSSES[piece]
    means = batch.mean(dim=0) if len(batch) else torch.full((3,), float("nan"))
    metric.update({"loss": means[0], "loss_h0": means[1], "loss_h1": means[2]}, len(batch))


def _feed_mean(metric: Any, piece: slice) -> None:
    batch = LOSSES[piece, 0]
    metric.update(batch.mean() if len(batch) else float("nan"), len(batch))


def _feed_named(metric: Any, piece: slice) -> None:
    for row in LOSSES[piece]:
        metric.update({"a": row[0], "b": row[1]}, float(row[2]))


def _feed_features(metric: Any, piece: slice) -> None:
    metric.update(FEATURES[piece], VALID[piece], torch.arange(MOST)[piece])


def _feed_labelled(metric: Any, piece: slice) -> None:
    labels = LABELS[piece]
    rows = FEATURES[piece] + labels[:, None] * torch.tensor([1.0, -1.0, 0.5, 0.0])
    metric.update(rows, labels, VALID[piece], torch.arange(MOST)[piece])


def _feed_rates(metric: Any, piece: slice) -> None:
    for step in range(piece.start, piece.stop):
        metric.optimizers[0].param_groups[0]["lr"] = 0.1 / (1 + step)
        metric.update()


def _feed_clipping(metric: Any, piece: slice) -> None:
    for norm in NORMS[piece]:
        metric.update(norm, torch.clamp(1.0 / norm, max=1.0), norm > 1.0)


def _feed_scalars(metric: Any, piece: slice) -> None:
    for step in range(piece.start, piece.stop):
        metric.update({"a": float(step), "b": float(NORMS[step])})


def _feed_throughput(metric: Any, piece: slice) -> None:
    for step in range(piece.start, piece.stop):
        metric.update(8, 0.1 + step, 0.2, 0.05)


def _feed_stability(metric: Any, piece: slice) -> None:
    for step in range(piece.start, piece.stop):
        metric.update(LOSSES[step, 0])


def _levels(piece: slice, seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    shapes = ((5, DIM), (2, 3))
    features = [torch.randn(MOST, *s, generator=_generator(seed + i)) for i, s in enumerate(shapes)]
    valid = [torch.rand(MOST, s[0], generator=_generator(9 + i)) < 0.7 for i, s in enumerate(shapes)]
    return [f[piece] for f in features], [v[piece] for v in valid]


def _feed_hierarchy(metric: Any, piece: slice) -> None:
    metric.update(*_levels(piece, seed=5))


def _feed_predictions(metric: Any, piece: slice) -> None:
    (predictions, valid), (targets, _) = _levels(piece, seed=5), _levels(piece, seed=7)
    metric.update(predictions, targets, valid, torch.arange(MOST)[piece])


def _feed_views(metric: Any, piece: slice) -> None:
    features, valid = _levels(piece, seed=11)
    metric.update(features[0], valid[0])


def _feed_masks(metric: Any, piece: slice) -> None:
    metric.update(MASKS[piece])


def _feed_encoders(metric: Any, piece: slice) -> None:
    for step in range(piece.start, piece.stop):
        student, teacher = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
        for scale, module in ((1.0, teacher), (1.5, student)):
            for parameter in module.parameters():
                torch.nn.init.constant_(parameter, scale * (1 + step))
        metric.update(student, teacher, 0.9, 1.0)


def _feed_noise(metric: Any, piece: slice) -> None:
    for step in range(piece.start, piece.stop):
        metric.update(3.0 + step % 3, 8, 1.0, 32)


def _feed_memory(metric: Any, piece: slice) -> None:
    if len(range(piece.start, piece.stop)):
        metric.usage.update([1.0, 2.0, 3.0, 40.0, 50.0, 60.0, 0.7])


def _feed_stragglers(metric: Any, piece: slice) -> None:
    metric.update_steps([(0.1 + step, 0.2, 0.05, 0.01) for step in range(piece.start, piece.stop)])


def _feed_total(metric: Any, piece: slice) -> None:
    metric.update(piece.stop - piece.start, 0.5, 10)


def _feed_gradients(metric: Any, piece: slice) -> None:
    for step in range(piece.start, piece.stop):
        for slot in metric.segments.slots:
            drawn = torch.randn(slot.parameter.shape, generator=_generator(step))
            slot.parameter.grad = drawn.to(slot.parameter)
        metric.update()


def _feed_epoch(metric: Any, piece: slice) -> None:
    for sample in range(piece.start, piece.stop):
        metric.update(LOSSES[sample, 0], 1, sample % metric.steps)


def _modalities(piece: slice) -> dict[str, torch.Tensor]:
    text = FEATURES[piece]
    return {"text": text, "image": text.roll(1, dims=1) + 0.2, "audio": -text + VALID[piece, None]}


def _feed_embeddings(metric: Any, piece: slice) -> None:
    metric.update(_modalities(piece), VALID[piece])


def _feed_alignment(metric: Any, piece: slice) -> None:
    metric.update(_modalities(piece), VALID[piece], torch.arange(MOST)[piece])


def _feed_updates(metric: Any, piece: slice) -> None:
    for step in range(piece.start, piece.stop):
        for slot in metric.segments.slots:
            slot.parameter.data.fill_(1.0 + step)
            slot.parameter.grad = torch.full_like(slot.parameter, 0.5 + step)
        with metric.around():
            metric.optimizers[0].step()


def _updates() -> DistributedMetric:
    model = _model()
    return metrics.Updates(model, torch.optim.SGD(model.parameters(), lr=0.1))


def _model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))


FRAMES = 7
PATCHES = torch.rand(MOST, 3, 4, 4, generator=_generator(4))
NOISE = torch.randn(MOST, 3, 4, 4, generator=_generator(5)) * torch.rand(
    MOST, 1, 1, 1, generator=_generator(6)
)


def _feed_patches(metric: Any, piece: slice) -> None:
    """Deal patches out to frames in turn, so that a frame's patches lie on several ranks."""
    target = PATCHES[piece]
    metric.update(target + NOISE[piece], target, torch.arange(MOST)[piece] % FRAMES, VALID[piece])


def _feed_rows(metric: Any, piece: slice) -> None:
    """Give no ids: every row is a frame of its own."""
    metric.update(FEATURES[piece], FEATURES[piece].roll(1, dims=-1), None, VALID[piece])


def _feed_qualities(metric: Any, piece: slice) -> None:
    metric.update(LOSSES[piece, 1], -torch.arange(MOST)[piece] % FRAMES - 3)


def _feed_heads(metric: Any, piece: slice) -> None:
    batch = LOSSES[piece]
    means = batch.mean(dim=0) if len(batch) else torch.full((3,), float("nan"))
    metric.update({"pixel": means[0], "clip": means[1]}, {"pixel": 1.0, "clip": 0.5}, len(batch))


def _two_parts() -> torch.nn.ModuleDict:
    return torch.nn.ModuleDict({"body": torch.nn.Linear(2, 2), "rgb_head": torch.nn.Linear(2, 1)})


def _head_gradients() -> DistributedMetric:
    model = _two_parts()
    return metrics.HeadGradients(model, dict(model.items()), [("rgb_head", "body")])


def _feed_head_gradients(metric: Any, piece: slice) -> None:
    for step in range(piece.start, piece.stop):
        for slot in metric.watched.slots:
            slot.parameter.grad = torch.full_like(slot.parameter, float(NORMS[step]))
        metric.update()


SHARED = torch.nn.Linear(DIM, 2, dtype=torch.float64)


def _feed_cosines(metric: Any, piece: slice) -> None:
    with torch.enable_grad():
        outputs = SHARED(FEATURES[piece].double())
        target = LABELS[piece].double()
        losses = {"a": (outputs[:, 0] - target).square().mean(), "b": (outputs.sum(1) + target).tanh().mean()}
    metric.update(losses, len(target))


def _feed_parameters(metric: Any, piece: slice) -> None:
    for step in range(piece.start, piece.stop):
        for number, slot in enumerate(metric.watched.slots):
            torch.nn.init.constant_(slot.parameter, float(NORMS[step]) + number)
        metric.update()


def _head_parameters() -> DistributedMetric:
    model = _two_parts()
    return metrics.HeadParameters(model, {"rgb_head": model["rgb_head"]})


def _feed_batches(metric: Any, piece: slice) -> None:
    for step in range(piece.start, piece.stop):
        metric.update((FEATURES[step].repeat(4) * (step % 3 > 0), torch.arange(2)), step)


def _feed_coverage(metric: Any, piece: slice) -> None:
    for step in range(piece.start, piece.stop):
        metric.update([f"layer{i}.weight" for i in range(step % 3)], step % 2)


def _replicas() -> DistributedMetric:
    model = torch.nn.BatchNorm1d(3)  # which begins with constants
    return metrics.ReplicaAgreement(model)


def _feed_replicas(metric: Any, piece: slice) -> None:
    for step in range(piece.start, piece.stop):
        metric.update(step)


def _feed_ends(metric: Any, piece: slice) -> None:
    for step in range(piece.start, piece.stop):
        metric.update(step % 7)


def _feed_growth(metric: Any, piece: slice) -> None:
    for step in range(piece.start, piece.stop):
        metric.resident.update(0.5 + step)


def _optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD(
        [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in (0.5, 0.25)], lr=1.0
    )


def _feed_activations(metric: Any, piece: slice) -> None:
    rows = torch.relu(FEATURES[piece]) * 3.0 + 0.25
    metric.update({"blocks.2": rows, "blocks.10": FEATURES[piece] * 2}, {"blocks.2": -rows})


def _feed_attention(metric: Any, piece: slice) -> None:
    (features, _), (others, _) = _levels(piece, seed=13), _levels(piece, seed=17)
    query, key = (f[0].unflatten(-1, (2, 2)).transpose(1, 2) for f in (features, others))
    metric.update(query, key, causal=True, layer="blocks.0.attn")
    metric.update(query * 4, key, layer="blocks.1.attn")


def _feed_experts(metric: Any, piece: slice) -> None:
    logits = torch.stack([LOSSES[piece, 0], LOSSES[piece, 1], LOSSES[piece, 2], 0 * LOSSES[piece, 0]], dim=-1)
    metric.update({"layers.0": logits.topk(2).indices}, {"layers.0": logits}, valid=VALID[piece])
    metric.update(torch.arange(MOST)[piece] % 5 - 1, layer="layers.1")


EXAMPLES: dict[type[DistributedMetric], Example] = {
    metrics.ActivationStatistics: Example(
        lambda: metrics.ActivationStatistics(_model(), gradients=True, per_block=True), _feed_activations
    ),
    metrics.AttentionStatistics: Example(
        lambda: metrics.AttentionStatistics(_model(), per_layer=True), _feed_attention
    ),
    metrics.ExpertLoad: Example(lambda: metrics.ExpertLoad(4, per_layer=True), _feed_experts, tolerance=1e-9),
    metrics.BatchContent: Example(
        metrics.BatchContent, _feed_batches, tags=(), rank_states=("batches",), tolerance=0.0
    ),
    metrics.HierarchicalLoss: Example(
        lambda: metrics.HierarchicalLoss(2, [1.0, 0.5]), _feed_losses, tolerance=1e-9
    ),
    metrics.WeightedMean: Example(lambda: metrics.WeightedMean("m"), _feed_mean, tolerance=1e-9),
    metrics.NamedMeans: Example(metrics.NamedMeans, _feed_named, tolerance=1e-9),
    metrics.Collapse: Example(lambda: metrics.Collapse(DIM, sample=16), _feed_features),
    metrics.LearningRate: Example(
        lambda: metrics.LearningRate(_optimizer()), _feed_rates, replicated=True, tolerance=0.0
    ),
    metrics.GradientClipping: Example(
        lambda: metrics.GradientClipping(torch.nn.Parameter(torch.ones(2)), window=5),
        _feed_clipping,
        replicated=True,
        tolerance=0.0,
    ),
    metrics.TrainingStability: Example(
        lambda: metrics.TrainingStability(window=8), _feed_stability, replicated=True, tolerance=1e-9
    ),
    metrics.HierarchyFeatures: Example(lambda: metrics.HierarchyFeatures([DIM, 3]), _feed_hierarchy),
    metrics.PredictionQuality: Example(
        lambda: metrics.PredictionQuality(2, [DIM, 3], patches=4), _feed_predictions
    ),
    metrics.ViewAgreement: Example(lambda: metrics.ViewAgreement(DIM), _feed_views),
    metrics.LinearProbe: Example(lambda: metrics.LinearProbe(DIM, 3, queue=24), _feed_labelled),
    metrics.KNNProbe: Example(lambda: metrics.KNNProbe(DIM, 3, k=3, queue=24), _feed_labelled),
    metrics.Masking: Example(
        lambda: metrics.Masking(36), _feed_masks, rank_states=("batches",), tolerance=0.0
    ),
    metrics.EMADynamics: Example(metrics.EMADynamics, _feed_encoders, replicated=True, tolerance=0.0),
    metrics.OptimizerCoverage: Example(metrics.OptimizerCoverage, _feed_coverage, tolerance=0.0),
    metrics.ReplicaAgreement: Example(
        _replicas, _feed_replicas, tags=(), rank_states=("parameters", "buffers"), tolerance=0.0
    ),
    metrics.LoaderEnds: Example(metrics.LoaderEnds, _feed_ends, tags=("data/steps_missing",), tolerance=0.0),
    metrics.MemoryGrowth: Example(metrics.MemoryGrowth, _feed_growth, tolerance=0.0),
    metrics.Updates: Example(_updates, _feed_updates, replicated=True, tolerance=0.0),
    metrics.GradientNoise: Example(
        lambda: metrics.GradientNoise(_model(), decay=0.0), _feed_noise, replicated=True, tolerance=1e-12
    ),
    metrics.Memory: Example(
        metrics.Memory,
        _feed_memory,
        tags=("performance/gpu_memory_peak_gb", "system/cpu_percent", "system/ram_gb"),
        tolerance=0.0,
    ),
    metrics.Stragglers: Example(lambda: metrics.Stragglers(4, report="numbers"), _feed_stragglers, tags=()),
    metrics.TotalSamples: Example(
        metrics.TotalSamples, _feed_total, tags=("performance/total_samples",), tolerance=0.0
    ),
    metrics.GradientFlow: Example(
        lambda: metrics.GradientFlow(_model()), _feed_gradients, replicated=True, tolerance=0.0
    ),
    metrics.EpochLoss: Example(lambda: metrics.EpochLoss(7), _feed_epoch, tolerance=1e-9),
    metrics.ModalityEmbeddings: Example(
        lambda: metrics.ModalityEmbeddings(["text", "image", "audio"]), _feed_embeddings
    ),
    metrics.ModalityAlignment: Example(
        lambda: metrics.ModalityAlignment(["text", "image", "audio"], sample=16), _feed_alignment
    ),
    metrics.ReplicatedScalars: Example(
        lambda: metrics.ReplicatedScalars(["a", "b"]), _feed_scalars, replicated=True, tolerance=0.0
    ),
    metrics.Reconstruction: Example(lambda: metrics.Reconstruction("val"), _feed_patches, tolerance=1e-9),
    metrics.SemanticSimilarity: Example(metrics.SemanticSimilarity, _feed_rows, tolerance=1e-9),
    metrics.FrameQuality: Example(
        lambda: metrics.FrameQuality("sharpness", edges=[0.0, 0.4, 0.5, 1.0]), _feed_qualities, tolerance=1e-9
    ),
    metrics.HeadLosses: Example(lambda: metrics.HeadLosses(["pixel", "clip"]), _feed_heads, tolerance=1e-9),
    metrics.HeadGradients: Example(_head_gradients, _feed_head_gradients, replicated=True, tolerance=1e-9),
    metrics.GradientCosines: Example(
        lambda: metrics.GradientCosines(SHARED, ["a", "b"]), _feed_cosines, tolerance=1e-9
    ),
    metrics.HeadParameters: Example(
        _head_parameters,
        _feed_parameters,
        replicated=True,
        tolerance=0.0,
    ),
    metrics.Throughput: Example(
        metrics.Throughput,
        _feed_throughput,
        tags=(
            "performance/forward_time_ms",
            "performance/backward_time_ms",
            "performance/data_time_ms",
            "performance/step_time_ms",
            "performance/forward_backward_ratio",
        ),
        tolerance=1e-9,
    ),
}


def exported_metrics() -> set[type[DistributedMetric]]:
    """Return every metric class that the package exports."""
    exported = (getattr(metrics, name) for name in dir(metrics))
    return {
        item
        for item in exported
        if isinstance(item, type) and issubclass(item, DistributedMetric) and item is not DistributedMetric
    }


def fed(example: Example, pieces: list[slice]) -> DistributedMetric:
    """Return a new metric that has seen the slices, one batch each."""
    metric = example.make()
    for piece in pieces:
        example.feed(metric, piece)
    return metric


def batches_of(example: Example, split: Split, rank: int) -> list[slice]:
    """Return what a rank sees of a split: its share, or everything where the metric is replicated."""
    ranks = parts(split)
    return [piece for mine in ranks for piece in mine] if example.replicated else ranks[rank]


def compute(metric: DistributedMetric, context: ProcessContext | None = None) -> dict[str, Value]:
    """Compute one metric on its own, over the ranks of a context."""
    values: dict[str, Value] = MetricCollection({"metric": metric}, context=context).compute()
    return values


def plain(values: dict[str, Value]) -> dict[str, Any]:
    """Return values as things that compare with ==; NaN equals NaN."""
    return {tag: _plain(value) for tag, value in values.items()}


def _plain(value: Value) -> Any:
    if isinstance(value, Scalar):
        return repr(value.value)
    if isinstance(value, Text):
        return value.markdown
    if isinstance(value, Image):
        return value.pixels.tolist()
    assert isinstance(value, Histogram)
    return value.counts.tolist(), value.edges.tolist(), repr(value.minimum), repr(value.maximum)


def assert_same(got: dict[str, Value], expected: dict[str, Value], example: Example) -> None:
    """Compare by tag: histograms bit by bit, pictures to a step of 256, numbers within the tolerance."""
    tags = set(expected) if example.tags is None else set(expected) & set(example.tags)
    assert set(got) & tags == tags
    assert example.tags is not None or set(got) == set(expected)
    for tag in tags:
        one, other = got[tag], expected[tag]
        if isinstance(other, Histogram):
            assert _plain(one)[:2] == _plain(other)[:2], tag
        elif isinstance(other, Text):
            assert one == other, tag
        elif isinstance(other, Image):
            apart = one.pixels.astype(int) - other.pixels
            assert np.abs(apart).max(initial=0) <= 1, tag  # a colour between two, rounded
        else:
            error = f"{tag}: {one} against {other}"
            tolerance = example.tolerance
            np.testing.assert_allclose(
                float(one), float(other), rtol=tolerance, atol=tolerance, err_msg=error
            )


def assert_same_counts(one: DistributedMetric, other: DistributedMetric) -> None:
    """Compare every integer that two metrics' states hold, bit by bit."""
    for name, state in one.states.items():
        for key, tensor in state.pack().items():
            if tensor.dtype == torch.int64 and key != "keys":
                assert torch.equal(tensor, other.states[name].pack()[key]), (name, key)
