"""What the layout of a model says about its ranks: who trains on batches of its own."""

from __future__ import annotations

from torch import nn

from hjepa_dist_metrics.parallel.sharding.fully_sharded import fsdp_units
from hjepa_dist_metrics.parallel.sharding.placement import is_dtensor


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
