"""See each rank's own gradients on their way into the reduction of data-parallel training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hjepa_dist_metrics.distributed.fully_sharded import fsdp_units
from hjepa_dist_metrics.errors import ConfigError

Measure = Callable[[Tensor], Tensor]
CommHook = Callable[[Any, Any], "torch.futures.Future[Tensor]"]


class LocalGradients:
    """Add up a measure of this rank's gradients as they go into their reduction, while `enabled`."""

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        self.enabled = False
        self._total: Tensor | None = None

    def see(self, gradient: Tensor) -> None:
        """Take in a bucket or a unit of gradients, before they are reduced."""
        if self.enabled:
            measured = self.measure(gradient)
            self._total = measured if self._total is None else self._total + measured

    def take(self) -> Tensor:
        """Return the total and start anew. ConfigError where no reduction came by."""
        total, self._total = self._total, None
        if total is None:
            raise ConfigError(
                "no gradient was reduced: the backward must run inside, with gradient synchronisation on"
            )
        return total


def watch_gradients(
    model: nn.Module, seen: LocalGradients, hook: CommHook | None = None, state: Any = None
) -> int:
    """Show `seen` the local gradients of a DDP or FSDP2 model; return over how many ranks they are averaged.

    DDP takes one communication hook: give yours here instead of registering it, and it is called after.
    FSDP2's own reduce-scatter, or the one that was set, goes on below. ConfigError for other models.
    """
    ddp = next((m for m in model.modules() if isinstance(m, DistributedDataParallel)), None)
    if ddp is not None:
        ddp.register_comm_hook(state, _ddp_hook(seen, hook or _default_hook(ddp, state)))
        return int(ddp.process_group.size())
    if hook is not None:
        raise ConfigError("a communication hook goes with DistributedDataParallel; this model is not in one")
    return _watch_fsdp(model, seen)


def _default_hook(ddp: DistributedDataParallel, state: Any) -> CommHook:
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    group = ddp.process_group if state is None else state
    return lambda _, bucket: allreduce_hook(group, bucket)


def _ddp_hook(seen: LocalGradients, inner: CommHook) -> CommHook:
    def hook(state: Any, bucket: Any) -> Any:
        seen.see(bucket.buffer())
        return inner(state, bucket)

    hook.__annotations__.clear()  # DDP takes annotations that are its own classes, or none
    return hook


def _watch_fsdp(model: nn.Module, seen: LocalGradients) -> int:
    units = [
        unit
        for module in model.modules()
        for unit in fsdp_units(module)
        if hasattr(unit, "_reduce_scatter_comm")
    ]
    if not units:
        raise ConfigError(
            "expected a model in DistributedDataParallel or fully_shard; one process measures micro-batches"
        )
    for unit in units:
        unit._reduce_scatter_comm = _SeeingReduceScatter(unit._reduce_scatter_comm, seen)
    mesh = units[0].mesh_info.mesh
    return int(mesh.size())


class _SeeingReduceScatter:
    """Pass FSDP2's reduce-scatter on, and show its input."""

    def __init__(self, inner: Any, seen: LocalGradients) -> None:
        self.inner, self.seen = inner, seen

    def allocate(self, *args: Any, **kwargs: Any) -> Tensor:
        tensor: Tensor = self.inner.allocate(*args, **kwargs)
        return tensor

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if input_tensor.dtype == torch.float16 and self.seen.enabled:
            raise ConfigError(
                "fully_shard scales float16 gradients before it reduces them: reduce in bfloat16"
            )
        self.seen.see(input_tensor)
        return self.inner(output_tensor, input_tensor, *args, **kwargs)
