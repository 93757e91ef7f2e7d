"""What a sync will cost at 8 to 16,384 ranks: an alpha-beta model fitted to collectives measured here.

A step costs alpha seconds, a byte beta seconds. gloo's all_gather of n bytes takes W - 1 steps of n bytes,
its all_reduce 2 (W - 1) steps of n / W. Small gathers, by messages or gloo's all-to-all, take one step of
W - 1 messages of n bytes, each of which costs gamma seconds, as measured for messages. The lower quartile is
measured: more than that, where ranks share processors, is the wait for a time slice. How many collectives a
sync has and how large they are is not modelled: it runs, at every number of ranks, on a channel that answers
without a network. What it computes by itself is measured in the same run.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks._ranks import lower_quartile, markdown, milliseconds, on_ranks, positive, timed, whole, write
from hjepa_dist_metrics import Collapse, DistributedMetric, MetricCollection, ProcessContext, WeightedMean
from hjepa_dist_metrics.distributed import open_channel
from hjepa_dist_metrics.distributed.group_channel import way_to_gather

WORLDS = (8, 64, 256, 1024, 4096, 16384)
_SCALARS = 100
_WIDTH = 384
_TIMEOUT = 60.0
_MESSAGE = 2e-5  # seconds of a processor for a message and its answer, as measured on the machines at hand
KINDS = ("all_gather", "messages", "all_reduce")


@dataclass(frozen=True)
class Call:
    """Hold one collective: its kind and the bytes that each rank puts in."""

    kind: str
    sent_bytes: int


@dataclass(frozen=True)
class Link:
    """Hold the seconds of a step (`alpha`), of a byte (`beta`) and of a message to one rank (`gamma`)."""

    alpha: float
    beta: float
    gamma: float = 0.0

    def seconds(self, call: Call, world: int) -> float:
        """Return how long a collective takes on so many ranks."""
        steps, sent, messages = terms(call, world)
        return steps * self.alpha + sent * self.beta + messages * self.gamma


def terms(call: Call, world: int) -> tuple[float, float, float]:
    """Return a collective's steps one after the other, the bytes that they move, and its messages."""
    others = world - 1
    if call.kind == "all_reduce":
        return 2 * others, 2 * others * call.sent_bytes / world, 0
    if call.kind == "messages":
        return 1, others * call.sent_bytes, others
    return others, others * call.sent_bytes, 0


@dataclass
class Recorder:
    """Answer gathers as if all ranks had sent the same, sums as if the others had sent zeros; note both."""

    world_size: int
    rank: int = 0
    calls: list[Call] = field(default_factory=list)

    def begin(self, patient: bool = False) -> None:
        """Do nothing: there is nobody to tell."""

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return the tensor once for every rank."""
        way = way_to_gather(self.world_size, tensor.nbytes)
        kind = "all_gather" if way == "ring" else "messages"
        self.calls.append(Call(kind, tensor.nbytes))
        return tensor.expand(self.world_size, -1).clone()

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the tensor."""
        self.calls.append(Call("all_reduce", tensor.nbytes))
        return tensor


def scalars() -> dict[str, DistributedMetric]:
    """Return the scalar metrics of a large run."""
    means = [WeightedMean(f"m{i}") for i in range(_SCALARS)]
    for mean in means:
        mean.update(1.0, 4)
    return {mean.tag: mean for mean in means}


def representations() -> dict[str, DistributedMetric]:
    """Return the same with the collapse metrics of two streams: covariances, samples, histograms."""
    metrics = scalars()
    for name in ("context", "target"):
        collapse = Collapse(_WIDTH, name)
        collapse.update(torch.randn(64, _WIDTH, generator=torch.Generator().manual_seed(0)))
        metrics[name] = collapse
    return metrics


SETS: dict[str, Callable[[], dict[str, DistributedMetric]]] = {
    f"{_SCALARS} scalars": scalars,
    f"and 2 x collapse, D={_WIDTH}": representations,
}


def record(metrics: dict[str, DistributedMetric], world: int) -> tuple[list[Call], float]:
    """Return the collectives of a sync at so many ranks, and the seconds it computes besides them."""
    channel = Recorder(world)
    context = ProcessContext(0, world, torch.device("cpu"), is_main=True, channel=channel)
    collection = MetricCollection(metrics, context=context)
    collection.compute()
    channel.calls.clear()
    begun = time.perf_counter()
    collection.compute()
    return channel.calls, time.perf_counter() - begun


def measure(sizes: Sequence[int], rounds: int) -> list[tuple[Call, int, float]]:
    """Return (collective, ranks, lower quartile of seconds) for all kinds and sizes; runs on every rank."""
    world, found = dist.get_world_size(), []
    channel = open_channel(ProcessContext.current(), _TIMEOUT)
    channel.begin()
    for size in sizes:
        tensor = torch.zeros(size, dtype=torch.uint8)
        outputs = list(torch.empty((world, size), dtype=torch.uint8).unbind(0))
        operations: dict[str, Callable[[], Any]] = {
            "all_gather": partial(dist.all_gather, outputs, tensor),
            "all_reduce": partial(dist.all_reduce, tensor),
        }
        if way_to_gather(world, size) == "messages":
            operations["messages"] = partial(channel.all_gather, tensor)
        times: dict[str, list[float]] = {kind: [] for kind in operations}
        for i in range(rounds + 2):
            for kind, operation in operations.items():
                spent = timed(operation)
                times[kind] += [spent] if i >= 2 else []
        found += [(Call(kind, size), world, lower_quartile(values)) for kind, values in times.items()]
    return found


def fit(measured: Sequence[tuple[Call, int, float]], kind: str) -> Link:
    """Return the link that fits the collectives of a kind best, in relative terms; no cost is negative."""
    found = [(terms(call, world), seconds) for call, world, seconds in measured if call.kind == kind]
    system = torch.tensor([[term / seconds for term in row] for row, seconds in found], dtype=torch.float64)
    scale = system.amax(dim=0)
    there = [i for i in range(3) if scale[i] > 0]
    best, costs = math.inf, [0.0] * 3
    for columns in (c for size in range(1, 4) for c in itertools.combinations(there, size)):
        part = system[:, columns] / scale[list(columns)]
        ones = torch.ones((len(found), 1), dtype=torch.float64)
        solution = torch.linalg.lstsq(part, ones).solution
        error = float((part @ solution - ones).square().sum())
        if bool((solution >= 0).all()) and error < best:
            best, costs = error, [0.0] * 3
            for i, cost in zip(columns, (solution[:, 0] / scale[list(columns)]).tolist(), strict=True):
                costs[i] = cost
    return Link(*costs)


def run(argv: Sequence[str]) -> int:
    """Measure, fit, predict, print the tables and write scale.md."""
    options = _parser().parse_args(argv)
    if options.latency_us is None:
        measured = [
            m for world in options.ranks for m in on_ranks(world, measure, options.sizes, options.rounds)
        ]
        links = {kind: fit(measured, kind) for kind in KINDS if any(m[0].kind == kind for m in measured)}
        links.setdefault("messages", replace(links["all_gather"], gamma=_MESSAGE))
        head = fitted(measured, links)
    else:
        links = dict.fromkeys(KINDS, Link(options.latency_us * 1e-6, 8 / (options.gbit * 1e9), _MESSAGE))
        head = f"A network of {options.latency_us:g} us a step and {options.gbit:g} Gbit/s."
    text = "\n\n".join([head, *(predicted(name, make, links) for name, make in SETS.items())])
    print(text)
    write(options.out, "scale.md", text)
    return 0


def fitted(measured: Sequence[tuple[Call, int, float]], links: dict[str, Link]) -> str:
    """Return the measured collectives beside the model in Markdown."""
    rows = []
    for call, world, seconds in measured:
        model = links[call.kind].seconds(call, world)
        what = f"{call.kind}, {world} ranks, {call.sent_bytes:,} B"
        rows.append([what, milliseconds(seconds), milliseconds(model), f"{model / seconds:.2f}"])
    table = markdown(["collective", "measured, ms", "model, ms", "ratio"], rows)
    lines = [
        f"{kind}: alpha {1e6 * link.alpha:.0f} us a step, beta {1e9 * link.beta:.3g} ns a byte"
        + (f", gamma {1e6 * link.gamma:.0f} us a message" if kind == "messages" else "")
        for kind, link in links.items()
    ]
    return "\n\n".join([table, *lines])


def predicted(name: str, make: Callable[[], dict[str, DistributedMetric]], links: dict[str, Link]) -> str:
    """Return the prediction for a set of metrics in Markdown."""
    rows = []
    for world in WORLDS:
        calls, local = record(make(), world)
        network = sum(links[call.kind].seconds(call, world) for call in calls)
        gathered = sum(c.sent_bytes for c in calls if c.kind != "all_reduce")
        reduced = sum(c.sent_bytes for c in calls if c.kind == "all_reduce")
        packed = links["all_reduce"].seconds(Call("all_reduce", _SCALARS * 16), world)
        rows.append(
            [
                f"{world:,}",
                str(len(calls)),
                f"{gathered / 1e3:,.1f}",
                f"{gathered * world / 1e6:,.1f}",
                f"{reduced / 1e6:,.2f}",
                milliseconds(network),
                milliseconds(local),
                milliseconds(packed),
            ]
        )
    head = [
        f"{name}: ranks",
        "collectives",
        "gathered, kB a rank",
        "received, MB",
        "summed, MB",
        "network, ms",
        "own work, ms",
        f"packed all_reduce of {_SCALARS}, ms",
    ]
    return markdown(head, rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmark.py scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # Alpha and beta are told apart by sizes, what a ring adds with each rank by numbers of ranks.
    worlds = [2, 4, *([8] if (os.cpu_count() or 1) >= 8 else [])]
    sizes = [8, 512, 4096, 16384, 65536, 1 << 20, 1 << 22]
    add = parser.add_argument
    add(
        "--ranks",
        type=whole(2),
        nargs="+",
        default=worlds,
        help="ranks to measure on (default 2 and 4, and 8 where there are as many cores)",
    )
    add("--sizes", type=whole(1), nargs="+", default=sizes, help="bytes a rank to measure with")
    add("--rounds", type=whole(1), default=30, help="repetitions of each (default 30)")
    add("--latency-us", type=positive, help="do not measure: microseconds of a step on your network")
    add("--gbit", type=positive, default=10.0, help="with --latency-us: Gbit/s of a rank's link (default 10)")
    add("--out", default="results/benchmarks", help="folder of scale.md")
    return parser
