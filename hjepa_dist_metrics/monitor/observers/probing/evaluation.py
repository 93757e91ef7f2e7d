"""Held-out batches, scored by the probes of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics import DistributedMetric, MetricCollection
from hjepa_dist_metrics.metrics.ssl.probes.base import Probe
from hjepa_dist_metrics.metrics.ssl.probes.held_out import HeldOutScores
from hjepa_dist_metrics.monitor.observers.probing.probes import labelled_streams
from hjepa_dist_metrics.values import Value

# One of the items that `TrainingMonitor.evaluate` takes.
Batch = Any


def evaluate(
    collection: MetricCollection,
    batches: Iterable[Batch],
    prefix: str,
    watched: Callable[[], Mapping[str, Any]],
) -> dict[str, Value]:
    """Let every probe of the collection learn from its queue and score the batches. A collective call.

    `watched` returns the features that modules have put out since it was last called.
    """
    scores = _scores(collection, prefix)
    watched()  # of forward passes before
    for batch in batches:
        for stream, arguments in _streams(batch, watched()):
            for score in _of_stream(scores, stream):
                _update(score, arguments, collection.context.world_size)
    metrics = {f"{stream}_{i}": one for stream, found in scores.items() for i, one in enumerate(found)}
    own = MetricCollection(metrics, collection.context, collection.sync_timeout, name=f"{prefix} probes")
    values: dict[str, Value] = own.compute()
    return values


def _scores(collection: MetricCollection, prefix: str) -> dict[str, list[HeldOutScores]]:
    probes = {name: metric for name, metric in collection.items() if isinstance(metric, Probe)}
    # All ranks sync, whether they have any: those that lack a probe are then named on every rank.
    merged = collection.compute(lambda _, states: dict(states), names=list(probes))
    if not probes:
        raise ConfigError(
            "there is no probe to evaluate with: hand `labels` [B] and features to `step` first, and leave "
            "logging.probes.enabled and the cadence of representations on"
        )
    found: dict[str, list[HeldOutScores]] = {}
    for name, probe in probes.items():
        for part in probe.parts:
            classifier = part.classifier(merged.get(name, {}))
            if classifier is not None:
                score = HeldOutScores(part, classifier, f"{prefix}_{probe.stream}")
                found.setdefault(probe.stream, []).append(score)
    return found


def _of_stream(scores: Mapping[str, list[HeldOutScores]], stream: str) -> list[HeldOutScores]:
    """Return the scores of a stream; features without a name are of the only one."""
    if stream not in scores and stream == "features" and len(scores) == 1:
        (stream,) = scores
    if stream not in scores:
        raise ConfigError(f"there is no probe of the features {stream!r}, but of {sorted(scores)}")
    return scores[stream]


def _streams(batch: Batch, watched: Mapping[str, Any]) -> Iterable[tuple[str, tuple[Any, ...]]]:
    """Yield the arguments of `HeldOutScores.update` of each stream of a batch."""
    if isinstance(batch, tuple) and len(batch) == 2:
        batch = {"features": batch[0], "labels": batch[1]}
    given = {**watched, **batch} if isinstance(batch, Mapping) else {}
    if not {"features", "labels"} <= given.keys():
        raise ConfigError(
            "expected batches (features, labels), or mappings with 'features' and 'labels', the first of "
            f"which may come from watch_features; got {_described(batch)}"
        )
    for name, rows, mask in labelled_streams(given["features"], given.get("valid")):
        yield name, (rows, given["labels"], mask)
    if given.get("context_features") is not None:
        yield "context", (given["context_features"], given["labels"], given.get("context_valid"))


def _described(batch: Batch) -> str:
    return f"a mapping with {sorted(batch)}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"


def _update(metric: DistributedMetric, arguments: tuple[Any, ...], world_size: int) -> None:
    """Add a batch; on many ranks a failure is raised by all at the end."""
    try:
        metric.update(*arguments)
    except Exception:
        if world_size == 1:
            raise
