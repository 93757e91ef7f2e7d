"""What a rank's machine is doing: memory and utilisation of its GPU, its CPU and its memory."""

from __future__ import annotations

import os

import torch

from hjepa_dist_metrics.distributed import ProcessContext
from hjepa_dist_metrics.metrics import MetricCollection, NamedMeans
from hjepa_dist_metrics.values import Scalar, Value

_GB = 1e9
_RAM = "ram/"


def read_system(context: ProcessContext) -> dict[str, float]:
    """Return this rank's readings: `system/gpu{rank}_...`, `system/cpu_percent` and `ram/{rank}` in GB.

    What cannot be read (no GPU, no psutil, no nvidia-ml-py) is left out.
    """
    return {**_read_gpu(context.device, context.rank), **_read_host(context.rank)}


def system_values(context: ProcessContext, sync_timeout: float) -> dict[str, Value]:
    """Return the job's readings, the same on every rank: each GPU's, the mean CPU use, the most memory.

    A collective call.
    """
    readings = NamedMeans()
    readings.update(read_system(context))
    merged = MetricCollection({"system": readings}, context, sync_timeout).compute()
    memory = [value.value for name, value in merged.items() if name.startswith(_RAM)]
    values: dict[str, Value] = {tag: value for tag, value in merged.items() if not tag.startswith(_RAM)}
    return {**values, "system/ram_gb": Scalar(max(memory))} if memory else values


def _read_gpu(device: torch.device, rank: int) -> dict[str, float]:
    if device.type != "cuda":
        return {}
    name = f"system/gpu{rank}_"
    readings = {
        f"{name}memory_allocated_gb": torch.cuda.memory_allocated(device) / _GB,
        f"{name}memory_reserved_gb": torch.cuda.memory_reserved(device) / _GB,
    }
    try:
        readings[f"{name}utilization"] = float(torch.cuda.utilization(device))
        readings[f"{name}memory_utilization"] = float(torch.cuda.memory_usage(device))
    except (ImportError, RuntimeError, OSError):  # nvidia-ml-py absent, or a driver that does not tell
        return readings
    return readings


def _read_host(rank: int) -> dict[str, float]:
    try:
        import psutil
    except ImportError:
        return {}
    resident = float(psutil.Process(os.getpid()).memory_info().rss)
    return {"system/cpu_percent": float(psutil.cpu_percent()), f"{_RAM}{rank}": resident / _GB}
