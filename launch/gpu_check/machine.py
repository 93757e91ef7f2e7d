"""What the machine has: the card, the versions, and which packages are missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
from typing import Any

import torch

from hjepa_dist_metrics.version import __version__

# Import names of what the checks need, and of extras, with what goes unchecked without them.
NEEDED = ("numpy", "tensorboard", "accelerate", "pytest", "hypothesis", "yaml")
EXTRAS = {
    "matplotlib": "figures",
    "sklearn": "projections in figures",
    "PIL": "figures",
    "psutil": "processor and memory use",
    "pynvml": "utilisation of the GPU",
    "triton": "inductor: compiled loops fail",
}
_PACKAGES = {"sklearn": "scikit-learn", "PIL": "pillow", "pynvml": "nvidia-ml-py", "yaml": "pyyaml"}


def describe(device: torch.device) -> dict[str, Any]:
    """Return names and versions of the machine."""
    found: dict[str, Any] = {
        "package": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "versions": {name: _version(name) for name in (*NEEDED, *EXTRAS) if not missing([name])},
        "missing": {name: EXTRAS[name] for name in missing(EXTRAS)},
        "compute-sanitizer": shutil.which("compute-sanitizer"),
    }
    return {**found, **_card(device)}


def missing(names: Any) -> list[str]:
    """Return those of the import names that are not installed."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(_PACKAGES.get(name, name))
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _card(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"device": f"the host (a rehearsal): {platform.machine()}"}
    properties = torch.cuda.get_device_properties(device)
    nccl: tuple[int, ...] | None = None
    if torch.distributed.is_nccl_available():
        nccl = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    return {
        "device": properties.name,
        "capability": [properties.major, properties.minor],
        "memory, GiB": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "nccl": None if nccl is None else ".".join(map(str, nccl)),
    }
