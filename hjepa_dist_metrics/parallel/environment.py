"""Where a job runs: machine, ranks, devices, versions."""

from __future__ import annotations

import os
import platform
import socket

import torch
import torch.distributed as dist

from hjepa_dist_metrics.parallel.context import ProcessContext
from hjepa_dist_metrics.version import __version__


def describe_environment(context: ProcessContext) -> str:
    """Return a Markdown table of facts on the job, as rank zero sees them."""
    facts = {
        "host": socket.gethostname(),
        "ranks": str(context.world_size),
        "device": _device(context.device),
        "backend": _backend(context),
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "hjepa-dist-metrics": __version__,
    }
    rows = [f"| {name} | {fact.replace('|', '/')} |" for name, fact in facts.items() if fact]
    return "\n".join(["| environment | |", "|---|---|", *rows])


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return device.type


def _backend(context: ProcessContext) -> str:
    if not (dist.is_available() and dist.is_initialized()):
        return ""
    return str(dist.get_backend(context.group))
