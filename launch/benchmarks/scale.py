"""What a sync will cost at 8 to 16,384 ranks: counted messages, and a model fitted to messages measured here.

A round is one message each way, two where the payload has no room in the first: alpha seconds, and beta for
each byte. Both are fitted to messages between two ranks of this machine, lower quartiles, or given for your
network. How many rounds, messages and bytes a sync has is not modelled: the real code of one rank runs, at
every number of ranks, on a channel whose peers answer with what this rank has merged so far, as if of other
ranks. What it computes by itself is measured in the same run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from benchmarks import _log_step
from benchmarks._ranks import (
    lower_quartile,
    markdown,
    median,
    milliseconds,
    on_ranks,
    positive,
    timed,
    whole,
    write,
)
from hjepa_dist_metrics import Collapse, DistributedMetric, MetricCollection, ProcessContext, WeightedMean
from hjepa_dist_metrics.parallel import open_channel
from hjepa_dist_metrics.parallel.transport import Bytes, LocalChannel
from hjepa_dist_metrics.states import RankTable
from hjepa_dist_metrics.sync.header import SIZE, Header
from hjepa_dist_metrics.sync.manifest import Manifest
from hjepa_dist_metrics.sync.payload import Payload
from hjepa_dist_metrics.sync.tree import steps

WORLDS = (8, 64, 256, 1024, 4096, 16384)
_SCALARS = 100
_WIDTH = 384
_TIMEOUT = 60.0
_REPETITIONS = 15
_FRAME_SIZES = [8192, 16384, 32768, 65536]


@dataclass(frozen=True)
class Link:
    """Hold the seconds of a message (`alpha`) and of each of its bytes (`beta`)."""

    alpha: float
    beta: float

    def seconds(self, size: int) -> float:
        """Return how long a message takes."""
        return self.alpha + size * self.beta


class Mirror(LocalChannel):
    """Answer as peers that have merged what this rank has; note the size of each message.

    Tables with a row for each rank would not grow by rows of one rank: those of the answers are of others.
    """

    def __init__(self, world_size: int, manifest: Callable[[], Manifest]) -> None:
        super().__init__()
        self.world_size = world_size
        self.frame = np.zeros(8192, dtype=np.uint8)
        self.manifest, self.sizes = manifest, list[int]()
        self.own_seconds = 0.0
        self._resumed = 0.0

    def begin(self, peers: Any, patience: str = "") -> None:
        """Start the clock of this rank's own work."""
        self.sizes, self.own_seconds, self._resumed = [], 0.0, time.perf_counter()

    def exchange(self, peer: int, sent: Bytes | None, size: int) -> Bytes:
        """Return what was sent, as if it were the peer's."""
        self.own_seconds += time.perf_counter() - self._resumed
        self.sizes.append(size)
        answer = np.zeros(0, dtype=np.uint8) if sent is None else self._mirrored(sent, peer)
        self._resumed = time.perf_counter()
        return answer

    def end(self, most_bytes: int) -> None:
        """Stop the clock, and let the frame grow as everywhere."""
        self.own_seconds += time.perf_counter() - self._resumed
        self.frame = next((np.zeros(n, np.uint8) for n in _FRAME_SIZES if n >= most_bytes), self.frame)

    def _mirrored(self, sent: Bytes, peer: int) -> Bytes:
        answer: Bytes = sent.copy()
        if len(sent) != len(self.frame):
            answer[:] = self._of_others(sent, peer)
            return answer
        payload_bytes = Header.read(sent.data).payload_bytes
        if payload_bytes <= len(sent) - SIZE:
            answer[SIZE : SIZE + payload_bytes] = self._of_others(sent[SIZE : SIZE + payload_bytes], peer)
        return answer

    def _of_others(self, data: Bytes, peer: int) -> Bytes:
        payload = Payload.decode(self.manifest(), data)
        for state in payload.others.values():
            if isinstance(state, RankTable):
                state.pack()["rows"][:, 0] += float(peer)
        return payload.encode()


def scalars() -> dict[str, DistributedMetric]:
    """Return a hundred means."""
    means = [WeightedMean(f"m{i}") for i in range(_SCALARS)]
    for mean in means:
        mean.update(1.0, 4)
    return {mean.tag: mean for mean in means}


def default_run() -> dict[str, DistributedMetric]:
    """Return what a monitor's log step syncs in the default run."""
    with tempfile.TemporaryDirectory() as folder:
        return _log_step.log_step_metrics(folder)


def representations() -> dict[str, DistributedMetric]:
    """Return the same with the collapse metrics of two streams: covariances, samples, histograms."""
    metrics = default_run()
    for name in ("context", "target"):
        collapse = Collapse(_WIDTH, name)
        collapse.update(torch.randn(64, _WIDTH, generator=torch.Generator().manual_seed(0)))
        metrics[name] = collapse
    return metrics


SETS: dict[str, Callable[[], dict[str, DistributedMetric]]] = {
    f"{_SCALARS} scalars": scalars,
    "default run's log step": default_run,
    f"and 2 x collapse, D={_WIDTH}": representations,
}


def record(metrics: dict[str, DistributedMetric], world: int) -> tuple[list[int], float]:
    """Return the bytes of each message of a sync, and the seconds that a rank computes between them."""
    manifest = Manifest({f"{name}.{s}": v for name, m in metrics.items() for s, v in m.states.items()})
    channel = Mirror(world, lambda: manifest)
    context = ProcessContext(0, world, torch.device("cpu"), is_main=True, channel=channel)
    collection = MetricCollection(metrics, context=context, name="scale")
    spent = []
    for _ in range(_REPETITIONS):
        collection.compute(lambda *_: None)
        spent.append(channel.own_seconds)
    return channel.sizes, median(spent)


def measure(sizes: Sequence[int], rounds: int) -> list[tuple[int, float]]:
    """Return (bytes, lower quartile of seconds) of messages each way; runs on both ranks."""
    channel, peer, found = open_channel(ProcessContext.current(), _TIMEOUT), 1 - dist.get_rank(), []
    channel.begin([peer])
    for size in sizes:
        sent = np.zeros(size, dtype=np.uint8)
        exchange = partial(channel.exchange, peer, sent, size)
        times = [timed(exchange) for _ in range(rounds + 5)]
        found.append((size, lower_quartile(times[5:])))
    return found


def fit(measured: Sequence[tuple[int, float]]) -> Link:
    """Return the link that fits best in relative terms; no cost is negative."""
    seconds = np.array([s for _, s in measured])
    system = np.array([[1.0, size] for size, _ in measured]) / seconds[:, None]
    alpha, beta = np.linalg.lstsq(system, np.ones(len(seconds)), rcond=None)[0]
    if alpha < 0 or beta < 0:
        return Link(float(seconds.min()), max(float(beta), 0.0))
    return Link(float(alpha), float(beta))


def run(argv: Sequence[str]) -> int:
    """Measure, fit, predict, print the tables and write scale.md."""
    options = _parser().parse_args(argv)
    if options.latency_us is None:
        measured = on_ranks(2, measure, options.sizes, options.rounds)
        link = fit(measured)
        head = fitted(measured, link)
    else:
        link = Link(options.latency_us * 1e-6, 8 / (options.gbit * 1e9))
        head = f"A network of {options.latency_us:g} us a message and {options.gbit:g} Gbit/s."
    text = "\n\n".join([head, *(predicted(name, make, link) for name, make in SETS.items())])
    print(text)
    write(options.out, "scale.md", text)
    return 0


def fitted(measured: Sequence[tuple[int, float]], link: Link) -> str:
    """Return the measured messages beside the model in Markdown."""
    rows = [
        [f"{size:,} B", milliseconds(s), milliseconds(link.seconds(size)), f"{link.seconds(size) / s:.2f}"]
        for size, s in measured
    ]
    table = markdown(["message each way, 2 ranks", "measured, ms", "model, ms", "ratio"], rows)
    return f"{table}\n\nalpha {1e6 * link.alpha:.0f} us a message, beta {1e9 * link.beta:.3g} ns a byte"


def predicted(name: str, make: Callable[[], dict[str, DistributedMetric]], link: Link) -> str:
    """Return the prediction for a set of metrics in Markdown."""
    metrics, rows = make(), []
    for world in WORLDS:
        sizes, own = record(metrics, world)
        network = sum(map(link.seconds, sizes))
        counts = [str(len(steps(0, world))), str(len(sizes)), f"{sum(sizes) / 1e3:,.1f}"]
        connections = len({step.peer for step in steps(0, world)})
        times = [milliseconds(network), milliseconds(own), milliseconds(network + own)]
        rows.append([f"{world:,}", *counts, str(connections), *times])
    head = [
        f"{name}: ranks",
        "rounds",
        "messages",
        "received, kB a rank",
        "connections",
        "network, ms",
        "own work, ms",
        "together, ms",
    ]
    return markdown(head, rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmark.py scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = [512, 8192, 16384, 65536, 1 << 20, 1 << 22]
    add = parser.add_argument
    add("--sizes", type=whole(1), nargs="+", default=sizes, help="bytes of the messages to measure")
    add("--rounds", type=whole(1), default=100, help="repetitions of each (default 100)")
    add("--latency-us", type=positive, help="do not measure: microseconds of a message on your network")
    add("--gbit", type=positive, default=10.0, help="with --latency-us: Gbit/s of a rank's link (default 10)")
    add("--out", default="results/benchmarks", help="folder of scale.md")
    return parser
