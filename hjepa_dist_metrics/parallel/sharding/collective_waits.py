"""How long a rank waits for others inside the collectives of data-parallel training, measured where it waits.

Every rank's step takes equally long, since the fast ones wait for the slow one. The rank that waits least is
the slow one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hjepa_dist_metrics.parallel import compat
from hjepa_dist_metrics.parallel.sharding.fully_sharded import fsdp_units

# The attributes of an FSDP2 unit that gather and reduce.
_COLLECTIVES = ("_all_gather_comm", "_reduce_scatter_comm")
# Seconds of waiting by the phase of the step in which they lie; None where they are not known.
Waits = Mapping[str, float] | None


class CollectiveWaits:
    """Measure this rank's waits of each step; `lag` steps later they are known.

    DistributedDataParallel: from the moment at which this rank's own last bucket was ready to the end of the
    backward, by the reducer's own clocks. `fully_shard` on the host: the time inside of all-gather and
    reduce-scatter. Where `ranks`, all ranks of the job, do not share one of these, ranks wait elsewhere too:
    nothing is known then, and `known` is false.
    """

    def __init__(self, model: nn.Module, device: torch.device, ranks: int) -> None:
        ddp = [m for m in model.modules() if isinstance(m, DistributedDataParallel)]
        units = [unit for module in model.modules() for unit in fsdp_units(module)]
        self._ddp = ddp[0] if len(ddp) == 1 and not units and _is_over(ddp[0].process_group, ranks) else None
        sharded = device.type == "cpu" and not ddp and all(_spans(unit, ranks) for unit in units)
        self._units = units if sharded else []
        self.known = self._ddp is not None or bool(self._units)
        self.lag = 0 if self._ddp is None else 1
        self.phase, self.paused = "", False
        self._seconds: dict[str, float] = {}
        self._iteration = 0
        self._on_device = device.type != "cpu"
        for unit in self._units:
            for name in _COLLECTIVES:
                setattr(unit, name, _TimedCollective(getattr(unit, name), self))
            unit.wait_for_unshard = self._timed(unit.wait_for_unshard)

    def close(self) -> None:
        """Take the clocks off FSDP2's collectives."""
        for unit in self._units:
            for name in _COLLECTIVES:
                timed = getattr(unit, name)
                if isinstance(timed, _TimedCollective):
                    setattr(unit, name, timed.inner)
            unit.__dict__.pop("wait_for_unshard", None)
        self._units = []

    def prepare(self, wanted: bool) -> None:
        """Have the coming step measured; on a GPU only where it is wanted, since to read its clocks waits."""
        if self.known and self._ddp is not None:
            compat.sample_ddp_times(self._ddp, wanted or not self._on_device)

    def take(self) -> Waits:
        """Return the waits of the step that ended `lag` steps ago."""
        if not self.known:
            return None
        if self._ddp is not None:
            return self._take_reducers(self._ddp)
        taken, self._seconds = self._seconds, {}
        return taken

    def _take_reducers(self, ddp: DistributedDataParallel) -> Waits:
        times = compat.ddp_times(ddp)
        if times is None or times.iteration == self._iteration:  # nothing was reduced, or measured
            return None
        self._iteration = times.iteration
        return {"backward": max(0.0, times.communication - times.overlap)}

    def _timed(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self.add(time.perf_counter() - begun)

        return timed

    def add(self, seconds: float) -> None:
        """Count seconds as waiting in the phase that runs."""
        if not self.paused:
            self._seconds[self.phase] = self._seconds.get(self.phase, 0.0) + seconds


class _TimedCollective:
    """Pass a collective of FSDP2 on, and time it."""

    def __init__(self, inner: Any, waits: CollectiveWaits) -> None:
        self.inner, self._waits = inner, waits

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        try:
            return self.inner(*args, **kwargs)
        finally:
            self._waits.add(time.perf_counter() - begun)


def _is_over(group: Any, ranks: int) -> bool:
    return dist.get_world_size(group) == ranks


def _spans(unit: Any, ranks: int) -> bool:
    """Return whether a unit of FSDP2 is sharded over all ranks, and its parameters in no other way."""
    meshes = [parameter.sharded_param.device_mesh for parameter in unit.fsdp_params]
    known = all(hasattr(unit, name) for name in _COLLECTIVES)
    return known and unit.mesh_info.mesh.size() == ranks and all(mesh.size() == ranks for mesh in meshes)
