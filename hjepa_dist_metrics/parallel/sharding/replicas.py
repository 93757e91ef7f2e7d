"""What the layout of a model says about its ranks: whose batches are their own, what all have copies of."""

from __future__ import annotations

from torch import Tensor, nn

from hjepa_dist_metrics.parallel.compat import ignored_by_ddp
from hjepa_dist_metrics.parallel.sharding.fully_sharded import fsdp_units
from hjepa_dist_metrics.parallel.sharding.parameter_shards import clean_name, has_flat_parameters
from hjepa_dist_metrics.parallel.sharding.placement import is_dense, is_dtensor

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


def is_replicated(model: nn.Module) -> bool:
    """Return whether each rank has all of every parameter: none is sharded, or flattened by FSDP1."""
    return not (has_flat_parameters(model) or any(is_dtensor(parameter) for parameter in model.parameters()))


def replicated_tensors(model: nn.Module) -> dict[str, NamedTensors]:
    """Return the parameters and the buffers of a replicated model, by name without wrappers.

    What DDP is set to ignore is left out, and what has no dense values.
    """
    found: dict[str, dict[int, tuple[str, Tensor]]] = {"parameters": {}, "buffers": {}}
    ignored: set[str] = set()
    for place, module in model.named_modules():  # once, for it takes longer than all else
        ignored.update(_path(place, name) for name in ignored_by_ddp(module))
        for held, kind in ((module._parameters, "parameters"), (module._buffers, "buffers")):
            for name, tensor in held.items():
                if tensor is not None and is_dense(tensor):
                    found[kind].setdefault(id(tensor), (_path(place, name), tensor))
    return {kind: [item for item in held.values() if item[0] not in ignored] for kind, held in found.items()}


def _path(place: str, name: str) -> str:
    return clean_name(f"{place}.{name}" if place else name)
