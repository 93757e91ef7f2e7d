"""Memory and load of every rank's device and process."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.states import Max
from hjepa_dist_metrics.states.ranks.rank_table import RankTable

logger = logging.getLogger("hjepa_dist_metrics.metrics")

GPU = ("memory_allocated_gb", "memory_reserved_gb", "memory_peak_gb", "utilization", "memory_utilization")
HOST = ("cpu_percent", "ram_gb")
_GB = 1e9


class Memory(DistributedMetric):
    """Report what every rank of the job uses: call `update` now and then, for instance every ten epochs.

    `system/gpu{r}_memory_allocated_gb`, `_reserved_gb`, `_utilization`, `_memory_utilization` of the device
    of each rank r; `performance/gpu_memory_{allocated,reserved,peak}_gb`, the largest over ranks, and
    `_rank`, who that is (the peak is since the last `update`); `system/cpu_percent`, mean over ranks, and
    `system/ram_gb`, the largest resident size of a rank's process. What cannot be measured is left out:
    GPU numbers on a machine without one, utilisation without nvidia-ml-py, CPU load without psutil
    (extra `system`). With `growing=False` the tags of `MemoryGrowth` are left out.

    >>> memory = Memory()
    >>> memory.update()
    >>> memory.compute()["system/ram_gb"] > 0
    True
    """

    def __init__(self, device: torch.device | str | None = None, growing: bool = True) -> None:
        self.device, self.growing = _device(device), growing
        _cpu_percent()  # the clock starts with the first call, which returns 0
        self._has_utilization = self.device is not None
        self.add_state("usage", RankTable(len(GPU) + len(HOST)))

    def update(self) -> None:
        """Read the counters of this rank, without synchronising with the device."""
        self.usage.update([*self._gpu(), *self._host()])

    def _gpu(self) -> list[float]:
        if self.device is None:
            return [float("nan")] * len(GPU)
        peak = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        memory = [torch.cuda.memory_allocated(self.device), torch.cuda.memory_reserved(self.device), peak]
        return [*(size / _GB for size in memory), *self._utilization()]

    def _utilization(self) -> tuple[float, float]:
        if self._has_utilization:
            try:
                return float(torch.cuda.utilization(self.device)), float(torch.cuda.memory_usage(self.device))
            except Exception as error:  # NVML has errors of its own, a class for each code
                self._has_utilization = False
                logger.warning("GPU utilisation is left out (extra 'system' brings nvidia-ml-py): %s", error)
        return float("nan"), float("nan")

    def _host(self) -> tuple[float, float]:
        return _cpu_percent(), _resident_bytes() / _GB

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tags; {} before the first update."""
        table = states["usage"].table
        tags: dict[str, Any] = {}
        for column, name in enumerate(GPU):
            values = table[:, column]
            if name != "memory_peak_gb":
                tags |= {f"system/gpu{r}_{name}": v for r, v in enumerate(values) if v == v}
            largest = name.endswith("_gb") and (self.growing or name != "memory_allocated_gb")
            if largest and not np.isnan(values).all():
                tag = f"performance/gpu_{name}"
                tags |= {tag: np.nanmax(values), f"{tag}_rank": int(np.nanargmax(values))}
        cpu, ram = table[:, len(GPU)], table[:, len(GPU) + 1]
        if not np.isnan(cpu).all():
            tags["system/cpu_percent"] = np.nanmean(cpu)
        if self.growing and not np.isnan(ram).all():
            tags["system/ram_gb"] = np.nanmax(ram)
        return tags


class MemoryGrowth(DistributedMetric):
    """Report what shows a leak, at the cost of two system calls: call `update` with the other scalars.

    `system/ram_gb`, the largest resident size of a rank's process, and on GPUs
    `performance/gpu_memory_allocated_gb`, the largest size of a rank's tensors, and `_rank`, who that is.

    >>> growth = MemoryGrowth()
    >>> growth.update()
    >>> sorted(growth.compute())
    ['system/ram_gb']
    """

    def __init__(self, device: torch.device | str | None = None) -> None:
        self.device = _device(device)
        self.add_state("resident", Max())
        self.add_state("allocated", Max())

    def update(self) -> None:
        """Read the counters of this rank; neither waits for the device."""
        resident = _resident_bytes()
        if resident == resident:
            self.resident.update(resident / _GB)
        if self.device is not None:
            self.allocated.update(torch.cuda.memory_allocated(self.device) / _GB)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tags; {} before the first update."""
        tags: dict[str, Any] = {}
        resident, allocated = states["resident"], states["allocated"]
        if resident.value >= 0:
            tags["system/ram_gb"] = resident.value
        if allocated.value >= 0:
            tag = "performance/gpu_memory_allocated_gb"
            tags |= {tag: allocated.value, f"{tag}_rank": allocated.rank or 0}
        return tags


def _device(device: torch.device | str | None) -> torch.device | None:
    if not torch.cuda.is_available():
        return None
    chosen = torch.device("cuda" if device is None else device)
    return chosen if chosen.type == "cuda" else None


def _cpu_percent() -> float:
    """Return the load of this machine since the last call, in percent; NaN without psutil."""
    try:
        import psutil
    except ImportError:
        return float("nan")
    return float(psutil.cpu_percent(interval=None))


def _resident_bytes() -> float:
    """Return the resident size of this process; its peak where neither /proc nor psutil has the size."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        import resource

        return int(statm.read_text().split()[1]) * float(resource.getpagesize())
    try:
        import psutil
    except ImportError:
        return _peak_bytes()
    return float(psutil.Process().memory_info().rss)


def _peak_bytes() -> float:
    if sys.platform == "win32":
        return float("nan")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)


_speed = partial(Entry, dashboard="performance")
_system = partial(Entry, family="system")


def _memory(name: str, what: str) -> tuple[Entry, ...]:
    return (
        _speed(
            f"performance/gpu_memory_{name}_gb",
            f"GPU memory {what}",
            f"GPU memory {what}, largest over ranks.",
            unit="GB",
            healthy="flat; a steady rise is a leak",
        ),
        _speed(
            f"performance/gpu_memory_{name}_gb_rank",
            f"rank with most GPU memory {what}",
            f"Rank with the largest performance/gpu_memory_{name}_gb.",
            unit="rank",
            dashboard="",
        ),
    )


ENTRIES = (
    *_memory("allocated", "allocated by tensors"),
    *_memory("reserved", "reserved by the allocator"),
    *_memory("peak", "allocated at the peak"),
    _system(
        "system/gpu{rank}_memory_allocated_gb", "allocated GPU memory", "Of this rank's device.", unit="GB"
    ),
    _system(
        "system/gpu{rank}_memory_reserved_gb", "reserved GPU memory", "Of this rank's device.", unit="GB"
    ),
    _system("system/gpu{rank}_utilization", "GPU utilisation", "Of this rank's device.", unit="%"),
    _system(
        "system/gpu{rank}_memory_utilization", "GPU memory utilisation", "Of this rank's device.", unit="%"
    ),
    _system("system/cpu_percent", "CPU utilisation", "Of the machine, mean over ranks.", unit="%"),
    Entry("system/ram_gb", "memory", "Used by the ranks' processes, largest over ranks.", unit="GB"),
)
