"""`hjepa-metrics doctor`: is this machine, under this launcher, ready for a run?"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

from hjepa_dist_metrics.metrics import MetricCollection, WeightedMean
from hjepa_dist_metrics.parallel import ProcessContext
from hjepa_dist_metrics.version import __version__

State = Literal["ok", "warn", "FAIL"]

_NEEDED = ("torch", "numpy", "tensorboard", "accelerate")
_EXTRAS = {
    "jsonargparse": "train",
    "scikit-learn": "train",
    "rich": "train",
    "matplotlib": "figures",
    "wandb": "wandb",
    "pyarrow": "parquet",
    "psutil": "system",
}
_LITTLE_DISK_GB = 1.0


@dataclass(frozen=True)
class Check:
    """Hold one finding."""

    state: State
    name: str
    detail: str

    def __str__(self) -> str:
        return f"{self.state:<4}  {self.name}: {self.detail}"


def environment() -> Iterator[Check]:
    """Yield versions, missing packages and backends."""
    yield Check("ok", "versions", f"hjepa-dist-metrics {__version__}, Python {platform.python_version()}")
    for package in _NEEDED:
        found = _version(package)
        yield Check("ok" if found else "FAIL", package, found or f"not installed: pip install {package}")
    absent = [f"{package} [{extra}]" for package, extra in _EXTRAS.items() if _version(package) is None]
    yield Check("ok", "optional packages", f"absent: {', '.join(absent)}" if absent else "all there")
    backends = [name for name in ("gloo", "nccl", "mpi") if dist.is_backend_available(name)]
    state: State = "ok" if "gloo" in backends else "FAIL"
    yield Check(state, "backends", f"{', '.join(backends) or 'none'} (metrics sync over gloo)")
    yield Check("ok", "devices", _devices())


def launcher(context: ProcessContext) -> Check:
    """Return what started this process."""
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if expected != context.world_size:
        detail = f"WORLD_SIZE is {expected}, but the group has {context.world_size} ranks"
        return Check("FAIL", "launcher", detail)
    if context.world_size == 1:
        return Check("ok", "launcher", "one process; start it with torchrun or accelerate launch to try more")
    return Check("ok", "launcher", f"{context.world_size} ranks over {dist.get_backend(context.group)}")


def reduction(context: ProcessContext, timeout: float) -> Check:
    """Sync a metric over all ranks and compare it with the known mean. A collective call."""
    mean = WeightedMean("doctor/mean")
    mean.update(float(context.rank), context.rank + 1)
    collection = MetricCollection({"doctor": mean}, context, sync_timeout=timeout)
    try:
        got = float(collection.compute()["doctor/mean"])
    except Exception as error:
        return Check("FAIL", "all-reduce", f"{type(error).__name__}: {' '.join(str(error).split())}")
    world = context.world_size
    expected = sum(rank * (rank + 1) for rank in range(world)) / sum(range(1, world + 1))
    if abs(got - expected) > 1e-12:
        return Check("FAIL", "all-reduce", f"expected {expected!r} over {world} ranks, got {got!r}")
    report = collection.last_sync
    seconds = f" in {1e3 * report.seconds:.1f} ms" if report else ""
    return Check("ok", "all-reduce", f"right over {world} rank{'s' * (world > 1)}{seconds}")


def place(log_dir: Path) -> Iterator[Check]:
    """Yield whether runs can write below `log_dir`, and how much disk is left there."""
    existing = next(path for path in (log_dir, *log_dir.absolute().parents) if path.exists())
    yield _attempt("write permission", lambda: _write(existing), f"{existing} can be written to")
    free = shutil.disk_usage(existing).free / 1e9
    state: State = "ok" if free >= _LITTLE_DISK_GB else "warn"
    yield Check(state, "free disk", f"{free:.1f} GB at {existing}")


def _write(directory: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".hjepa-doctor-") as file:
        file.write(b"x" * 4096)
        file.flush()
        os.fsync(file.fileno())


def _attempt(name: str, action: Callable[[], None], good: str) -> Check:
    try:
        action()
    except OSError as error:
        return Check("FAIL", name, f"{error.strerror or error} ({error.filename or ''})")
    return Check("ok", name, good)


def _devices() -> str:
    if not torch.cuda.is_available():
        return f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads a process"
    names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
    return f"{torch.cuda.device_count()} GPU: {', '.join(sorted(names))}; CUDA {torch.version.cuda}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
