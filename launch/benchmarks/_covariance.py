"""The effective rank of all ranks' rows: a merged covariance against gathering the rows and an SVD."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks._ranks import counted, markdown, median, milliseconds, timed
from hjepa_dist_metrics import DistributedMetric, MetricCollection
from hjepa_dist_metrics.metrics.ssl.formulas.spectrum import entropy_rank, without_noise
from hjepa_dist_metrics.states import Covariance

Cell = dict[str, Any]
_STATUS = Path("/proc/self/status")
_RESET_PEAK = Path("/proc/self/clear_refs")


class EffectiveRank(DistributedMetric):
    """exp H of the covariance's spectrum, over all rows of all ranks."""

    def __init__(self, dim: int) -> None:
        self.add_state("rows", Covariance(dim))

    def update(self, rows: Tensor) -> None:
        """Add rows [N, D]."""
        self.rows.update(rows)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, float]:
        """Return the effective rank."""
        return {"rank": entropy_rank(without_noise(states["rows"].spectrum()))}


def by_covariance(rows: Tensor) -> float:
    """Ours: a D x D state, merged."""
    collection = MetricCollection({"m": EffectiveRank(rows.shape[1])})
    collection["m"].update(rows)
    return float(collection.compute()["rank"])


def by_gathering(rows: Tensor) -> float:
    """The usual way: every rank gathers all rows and takes their singular values, in float32."""
    everything = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(everything, rows)
    gathered = torch.cat(everything)
    return entropy_rank(torch.linalg.svdvals(gathered - gathered.mean(dim=0)).double() ** 2)


WAYS: dict[str, Callable[[Tensor], float]] = {"ours": by_covariance, "gather and SVD": by_gathering}


def measure(count: int, dims: Sequence[int], rounds: int) -> list[Cell]:
    """Return a cell for every way and width; runs on every rank."""
    return [cell for dim in dims for cell in _measure_dim(count, dim, rounds)]


def _measure_dim(count: int, dim: int, rounds: int) -> list[Cell]:
    rows = draw(count, dim, dist.get_rank())
    # Float64 singular values of everything, drawn again on every rank: no collective to trust.
    everything = torch.cat([draw(count, dim, rank) for rank in range(dist.get_world_size())]).double()
    centred = everything - everything.mean(dim=0)
    exact = entropy_rank(torch.linalg.svdvals(centred) ** 2)
    del everything, centred
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    peaks: dict[str, int | None] = {}
    results: dict[str, float] = {}
    traffic = {}
    for name, way in WAYS.items():
        with counted() as traffic[name]:
            results[name] = way(rows)
        peaks[name] = peak_bytes(partial(way, rows))
    for _ in range(rounds):
        for name, way in WAYS.items():
            times[name].append(timed(partial(way, rows)))
    return [
        {
            "way": name,
            "ranks": dist.get_world_size(),
            "rows": count,
            "dim": dim,
            "seconds": median(times[name]),
            "peak_bytes": peaks[name],
            "sent_bytes": traffic[name].sent_bytes,
            "calls": traffic[name].calls,
            "relative_error": abs(results[name] - exact) / exact,
        }
        for name in WAYS
    ]


def measure_memory(counts: Sequence[int], dim: int) -> list[Cell]:
    """Return the peak memory of every way for several numbers of rows a rank; runs on every rank."""
    cells = []
    for way in WAYS.values():
        way(draw(2, dim, 0))  # what a library sets up at its first call is not the rows' memory
    for count in counts:
        rows = draw(count, dim, dist.get_rank())
        for name, way in WAYS.items():
            peak = peak_bytes(partial(way, rows))
            cells.append(
                {"way": name, "ranks": dist.get_world_size(), "rows": count, "dim": dim, "peak": peak}
            )
    return cells


def memory_report(cells: Sequence[Cell]) -> str:
    """Return the table of peak memory over rows in Markdown: what grows with them, and what does not."""
    counts = list(dict.fromkeys(cell["rows"] for cell in cells))
    peaks = {(cell["way"], cell["rows"]): cell["peak"] for cell in cells}
    first = cells[0]
    head = [
        f"peak memory, MB, D={first['dim']}, {first['ranks']} ranks",
        *(f"N={n:,} a rank" for n in counts),
    ]
    rows = [[way, *(_megabytes(peaks[way, n]) for n in counts)] for way in WAYS]
    return markdown(head, rows)


def _megabytes(size: int | None) -> str:
    return "?" if size is None else f"{size / 1e6:.0f}"


def draw(count: int, dim: int, rank: int) -> Tensor:
    """Return a rank's rows: a falling spectrum about a mean that is not zero."""
    rng = torch.Generator().manual_seed(rank)
    scale = torch.arange(1, dim + 1).float() ** -0.5
    return torch.randn((count, dim), generator=rng) * scale + 1.0


def peak_bytes(operation: Callable[[], Any]) -> int | None:
    """Return how far the process's resident memory rose above its level before; None where Linux is not."""
    _give_back()
    try:
        _RESET_PEAK.write_text("5")
        before = _status("VmRSS")
        operation()
        return max(0, _status("VmHWM") - before)
    except OSError:
        operation()
        return None


def _give_back() -> None:
    """Return freed memory to the system: what an earlier call left behind would hide what this one needs."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)


def _status(key: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def report(cells: Sequence[Cell]) -> str:
    """Return the table in Markdown."""
    head = ["effective rank", "ms", "peak memory, MB", "sent, MB a rank", "calls", "relative error"]
    rows = [
        [
            f"{cell['way']}, {cell['ranks']} ranks, D={cell['dim']}, N={cell['rows']} a rank",
            milliseconds(cell["seconds"]),
            _megabytes(cell["peak_bytes"]),
            f"{cell['sent_bytes'] / 1e6:.1f}",
            str(cell["calls"]),
            f"{cell['relative_error']:.0e}",
        ]
        for cell in cells
    ]
    return markdown(head, rows)
