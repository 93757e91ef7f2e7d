"""What the layout of a model says about its ranks: whose batches are their own, what all have copies of."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hjepa_dist_metrics.parallel.compat import ignored_by_ddp
from hjepa_dist_metrics.parallel.sharding.fully_sharded import fsdp_units
from hjepa_dist_metrics.parallel.sharding.parameter_shards import clean_name, has_flat_parameters
from hjepa_dist_metrics.parallel.sharding.placement import is_dtensor

NamedTensors = list[tuple[str, Tensor]]


def have_own_batches(model: nn.Module, ranks: int) -> bool:
    """Return whether each of several ranks trains on batches of its own, as far as the parameters tell.

    They do where parameters are plain, in DDP for instance, or sharded by `fully_shard` over one dimension.
    Other meshes may have dimensions whose ranks work on one batch together, as in tensor parallelism.
    """
    if ranks < 2:
        return False
    sharded = [parameter for parameter in model.parameters() if is_dtensor(parameter)]
    if not sharded:
        return True
    flat = all(parameter.device_mesh.ndim == 1 for parameter in sharded)  # type: ignore[attr-defined]
    return flat and any(fsdp_units(module) for module in model.modules())


def replicated_tensors(model: nn.Module) -> dict[str, NamedTensors]:
    """Return the parameters and the buffers that every rank has all of, by name without wrappers.

    Both are empty where any parameter is sharded or flattened by FSDP. What DDP is set to ignore is left out,
    and what has no dense values.
    """
    if has_flat_parameters(model) or any(is_dtensor(parameter) for parameter in model.parameters()):
        return {"parameters": [], "buffers": []}
    modules = model.named_modules()
    ignored = {clean_name(_path(place, name)) for place, module in modules for name in ignored_by_ddp(module)}

    def counted(named: Iterable[tuple[str, Tensor]]) -> NamedTensors:
        clean = ((clean_name(name), tensor) for name, tensor in named)
        return [(name, tensor) for name, tensor in clean if name not in ignored and _is_dense(tensor)]

    return {"parameters": counted(model.named_parameters()), "buffers": counted(model.named_buffers())}


def _path(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _is_dense(tensor: Tensor) -> bool:
    if is_lazy(tensor) or is_dtensor(tensor):
        return False
    return tensor.layout is torch.strided and not (tensor.is_nested or tensor.is_quantized)
