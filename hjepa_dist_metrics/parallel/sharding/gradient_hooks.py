"""See each rank's own gradients on their way into the reduction of data-parallel training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.parallel.sharding.fully_sharded import fsdp_units, stored_parameters

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

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Measure what is reduced in the body."""
        self.enabled = True
        try:
            yield
        finally:
            self.enabled = False

    def take(self) -> Tensor | None:
        """Return the total and start anew; None where no reduction came by."""
        total, self._total = self._total, None
        return total


def watch_gradients(
    model: nn.Module, seen: LocalGradients, hook: CommHook | None = None, state: Any = None
) -> int:
    """Show `seen` the local gradients of a DDP or FSDP2 model; return over how many ranks they are averaged.

    DDP takes one communication hook: give yours here instead of registering it, and it is called after.
    FSDP2's own reduce-scatter, or the one that was set, goes on below. ConfigError for other models, and
    where some of the gradients take another way.
    """
    ddp = next((m for m in model.modules() if isinstance(m, DistributedDataParallel)), None)
    if ddp is not None:
        _require_seen(model, {id(parameter) for parameter in ddp.parameters()})
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
    units = [unit for module in model.modules() for unit in fsdp_units(module)]
    if not all(hasattr(unit, "_reduce_scatter_comm") for unit in units):
        raise ConfigError(
            f"torch {torch.__version__} does not show what fully_shard reduces: noise needs a newer one"
        )
    if not units:
        raise ConfigError(
            "expected a model in DistributedDataParallel or fully_shard; one process measures micro-batches"
        )
    held = [(unit, parameter) for unit in units for parameter in unit.fsdp_params]
    _require_seen(model, {id(parameter.sharded_param) for _, parameter in held})
    if any(p.sharded_param.device_mesh.size() != unit.mesh_info.mesh.size() for unit, p in held):
        raise ConfigError(
            "the model is tensor parallel too: a rank's reduce-scatter has a part of its gradient only"
        )
    for unit in units:
        unit._reduce_scatter_comm = _SeeingReduceScatter(unit._reduce_scatter_comm, seen)
    mesh = units[0].mesh_info.mesh
    return int(mesh.size())


def _require_seen(model: nn.Module, seen: set[int]) -> None:
    trained = [(name, p) for name, p in stored_parameters(model) if p.requires_grad]
    missed = [name for name, parameter in trained if id(parameter) not in seen]
    if missed:
        raise ConfigError(f"{len(missed)} parameters are reduced elsewhere, {missed[0]!r} for one: no noise")


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
