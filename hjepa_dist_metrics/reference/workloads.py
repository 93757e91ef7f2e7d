"""The workloads that the training command knows, each loaded when it is asked for."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from hjepa_dist_metrics import ConfigError, ProcessContext
from hjepa_dist_metrics.reference.trainer import Outcome
from hjepa_dist_metrics.reference.training import TrainingConfig
from hjepa_dist_metrics.reference.workload import Workload

Row = tuple[str, str, str, str]

# Each module has a `KIND`.
_MODULES = {
    "hjepa": "hjepa_dist_metrics.reference.hjepa.kind",
    "dual_head": "hjepa_dist_metrics.reference.dual_head.kind",
    "language": "hjepa_dist_metrics.reference.language.kind",
    "multimodal": "hjepa_dist_metrics.reference.multimodal.kind",
}
DEFAULT = "hjepa"


@dataclass(frozen=True)
class WorkloadKind:
    """Describe a workload to the training command."""

    model: type[Any]
    """Dataclass of the section `model`."""
    data: type[Any]
    """Dataclass of the section `data`."""
    build: Callable[[Any, Any, TrainingConfig, ProcessContext], Workload]
    """Make the workload from its sections."""
    rows: Callable[[Outcome, Any], Iterator[Row]]
    """Yield the final table's rows (quantity, start, end, baseline) from a run's outcome and `model`."""

    @property
    def sections(self) -> Mapping[str, type[Any]]:
        """Return the dataclasses of the workload's sections by name."""
        return {"model": self.model, "data": self.data, "training": TrainingConfig}


def workload_kind(name: str) -> WorkloadKind:
    """Return the workload of this name; ConfigError, naming the nearest one, where there is none."""
    if name not in _MODULES:
        near = difflib.get_close_matches(name, _MODULES, n=1, cutoff=0.0)[0]
        raise ConfigError(f"unknown workload {name!r}: there are {', '.join(_MODULES)}; nearest: {near!r}")
    kind: WorkloadKind = import_module(_MODULES[name]).KIND
    return kind
