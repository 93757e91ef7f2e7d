"""Ways to get n means over ranks: ours, the floor, and the peers. Each makes n metrics and syncs them."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from hjepa_dist_metrics import MetricCollection, ProcessContext, WeightedMean
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.parallel import open_channel
from hjepa_dist_metrics.sync.tree import steps

Sync = Callable[[], Sequence[float]]
COUNT = 4.0  # samples behind every rank's mean


def ours(values: Sequence[float]) -> Sync:
    """MetricCollection of WeightedMeans, inline: checked, one exchange."""
    tags = [f"m{i}" for i in range(len(values))]
    collection = MetricCollection({tag: WeightedMean(tag) for tag in tags})
    for tag, value in zip(tags, values, strict=True):
        collection[tag].update(value, COUNT)

    def sync() -> list[float]:
        merged = collection.compute()
        return [merged[tag] for tag in tags]

    return sync


def ours_background(values: Sequence[float]) -> Sync:
    """The training thread's share of a background sync: the snapshot. Waits for the others outside of it."""
    tags = [f"m{i}" for i in range(len(values))]
    collection = MetricCollection({tag: WeightedMean(tag) for tag in tags})
    for tag, value in zip(tags, values, strict=True):
        collection[tag].update(value, COUNT)
    handles = []

    def sync() -> list[float]:
        handles.append(collection.compute_async())
        return []

    def finish() -> list[float]:
        merged = handles.pop().result(60.0)
        return [merged[tag] for tag in tags]

    sync.finish = finish  # type: ignore[attr-defined]
    return sync


def packed(values: Sequence[float], group: dist.ProcessGroup | None = None) -> Sync:
    """The floor: numerators and denominators in one float64 buffer, one all_reduce, nothing checked.

    On the job's group it finds awake what the peers have just used: the group's threads, and the same code.
    """
    source = torch.tensor([[value * COUNT for value in values], [COUNT] * len(values)], dtype=torch.float64)
    buffer = torch.empty_like(source)

    def sync() -> list[float]:
        buffer.copy_(source)
        dist.all_reduce(buffer, group=group)
        means: list[float] = (buffer[0] / buffer[1]).tolist()
        return means

    return sync


def packed_apart(values: Sequence[float]) -> Sync:
    """The floor on a group of its own, as our syncs have: what goes wrong in it leaves the job alone."""
    return packed(values, dist.new_group(backend="gloo"))


def bare_tree(values: Sequence[float]) -> Sync:
    """Our messages alone: the frames of each round, which nobody writes, checks or merges."""
    context = ProcessContext.current()
    channel = open_channel(context, 61.0)  # seconds; a limit of no other method, so that it has its own
    rounds = steps(context.rank, context.world_size)
    size = len(channel.frame)

    def sync() -> list[float]:
        channel.begin([step.peer for step in rounds])
        for step in rounds:
            sent = channel.frame if step.way >= 0 else None
            channel.exchange(step.peer, sent, size if step.way <= 0 else 0)
        return list(expected)

    expected = [value - context.rank + (context.world_size - 1) / 2 for value in values]
    return sync


def stacked(values: Sequence[float]) -> Sync:
    """The same by hand from separate tensors, as metrics hold them: stack, then one all_reduce."""
    parts = [torch.tensor([value * COUNT, COUNT], dtype=torch.float64) for value in values]

    def sync() -> list[float]:
        buffer = torch.stack(parts)
        dist.all_reduce(buffer)
        means: list[float] = (buffer[:, 0] / buffer[:, 1]).tolist()
        return means

    return sync


def torchmetrics(values: Sequence[float]) -> Sync:
    """torchmetrics: MeanMetric each, its own sync."""
    import torchmetrics as library

    metrics = [library.MeanMetric(compute_with_cache=False) for _ in values]
    for metric, value in zip(metrics, values, strict=True):
        metric.update(value, COUNT)
    return lambda: [float(metric.compute()) for metric in metrics]


def torcheval(values: Sequence[float]) -> Sync:
    """torcheval: Mean each, sync_and_compute_collection."""
    from torcheval.metrics import Mean
    from torcheval.metrics.toolkit import sync_and_compute_collection

    metrics: dict[str, Any] = {f"m{i}": Mean() for i in range(len(values))}
    for metric, value in zip(metrics.values(), values, strict=True):
        metric.update(torch.tensor([value]), weight=COUNT)
    return lambda: [float(value) for value in sync_and_compute_collection(metrics).values()]


def ignite(values: Sequence[float]) -> Sync:
    """ignite: Average each, compute."""
    from ignite.metrics import Average

    metrics: list[Any] = [Average() for _ in values]
    for metric, value in zip(metrics, values, strict=True):
        for _ in range(int(COUNT)):
            metric.update(value)

    def sync() -> list[float]:
        # compute() reduces in place of its cache: forget the cache, as a further update would.
        for metric in metrics:
            metric._is_reduced = False
        return [float(metric.compute()) for metric in metrics]

    return sync


def accelerate(values: Sequence[float]) -> Sync:
    """accelerate: `reduce` of numerator and denominator each."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    if accelerator.num_processes != dist.get_world_size():
        raise ConfigError(
            f"accelerate sees {accelerator.num_processes} processes, not {dist.get_world_size()}"
        )
    parts = [torch.tensor([value * COUNT, COUNT], dtype=torch.float64) for value in values]

    def sync() -> list[float]:
        totals = [accelerator.reduce(part, reduction="sum") for part in parts]
        return [float(total[0] / total[1]) for total in totals]

    return sync


METHODS: dict[str, Callable[[Sequence[float]], Sync]] = {
    "ours": ours,
    "ours, training thread": ours_background,
    "packed": packed,
    "packed, own group": packed_apart,
    "bare tree": bare_tree,
    "stacked": stacked,
    "accelerate": accelerate,
    "ignite": ignite,
    "torcheval": torcheval,
    "torchmetrics": torchmetrics,
}
PEERS = ("accelerate", "ignite", "torcheval", "torchmetrics")


def require_peers(names: Sequence[str]) -> None:
    """Raise ConfigError that names the peers' packages that are not installed."""
    missing = [name for name in names if name in PEERS and importlib.util.find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        advice = "pip install 'hjepa-dist-metrics[bench]', or choose --methods"
        raise ConfigError(f"not installed: {names}; {advice}")


def quiet() -> None:
    """Silence the peers' warnings about themselves."""
    warnings.filterwarnings("ignore")
