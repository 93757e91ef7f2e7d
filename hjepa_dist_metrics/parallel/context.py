"""Where this process stands among the processes that share its metrics."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from hjepa_dist_metrics.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from hjepa_dist_metrics.parallel.transport.channel import Channel

_HOST = torch.device("cpu")


@dataclass(frozen=True)
class ProcessContext:
    """Name the ranks over which metrics are merged, and this process's place among them.

    `rank` counts within the group. `is_main` is true on exactly one process: the one that writes files.
    `is_member` is false on a process outside the group, for which every sync is a no-op.
    `channel` replaces the group's transport; ranks simulated in one process use it.
    """

    rank: int
    world_size: int
    device: torch.device
    is_main: bool
    is_member: bool = True
    group: dist.ProcessGroup | None = None
    channel: Channel | None = None

    @classmethod
    def current(
        cls,
        group: dist.ProcessGroup | DeviceMesh | None = None,
        dims: Sequence[str] | None = None,
        device: torch.device | str | None = None,
    ) -> ProcessContext:
        """Read the context of this process; a world of one where torch.distributed is not initialised.

        `group` is a process group, or a DeviceMesh together with the names of its data-parallel `dims`
        (all of them where `dims` is None). Ranks that differ only in the other dimensions, tensor-parallel
        ones for instance, see the same samples: each merges with its own data-parallel peers, so a sample
        counts once, and only the first replica is main.
        """
        if group is None and dims is None:
            return _of_job(device)
        where = _default_device() if device is None else torch.device(device)
        if not (dist.is_available() and dist.is_initialized()):
            return cls(rank=0, world_size=1, device=where, is_main=True)
        outside: Any = dist.GroupMember.NON_GROUP_MEMBER
        if group is outside:
            return cls(0, 1, where, is_main=False, is_member=False)
        if group is not None and not isinstance(group, dist.ProcessGroup):
            return cls._from_mesh(group, dims, where)
        if dims is not None:
            raise ConfigError(
                f"dims={list(dims)!r} need a DeviceMesh as the group, got {type(group).__name__}"
            )
        rank = dist.get_rank(group)
        if rank < 0:
            return cls(0, 1, where, is_main=False, is_member=False, group=group)
        return cls(rank, dist.get_world_size(group), where, is_main=rank == 0, group=group)

    @classmethod
    def _from_mesh(cls, mesh: DeviceMesh, dims: Sequence[str] | None, device: torch.device) -> ProcessContext:
        names = tuple(mesh.mesh_dim_names or ())
        given = tuple(dims) if dims is not None else names
        if not given or not set(given) <= set(names):
            raise ConfigError(f"the mesh has the dimensions {list(names)}, got dims={list(given)}")
        wanted = tuple(name for name in names if name in given)  # a mesh is cut in its own order only
        coordinate = mesh.get_coordinate()
        if coordinate is None:
            return cls(0, 1, device, is_main=False, is_member=False)
        sub = mesh[wanted] if wanted != names else mesh
        group = sub.get_group() if len(wanted) == 1 else sub._flatten().get_group()
        first_replica = all(c == 0 for name, c in zip(names, coordinate, strict=True) if name not in wanted)
        rank = dist.get_rank(group)
        main = rank == 0 and first_replica
        return cls(rank, dist.get_world_size(group), device, is_main=main, group=group)


# Asked at every sync, and answered without a call of Python.
_cuda_is_available = functools.cache(torch.cuda.is_available)
_distributed_is_available = functools.cache(dist.is_available)


def _default_device() -> torch.device:
    if _cuda_is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return _HOST


# The whole job's context, with the process group it was read from: metrics ask for it at every sync.
_latest: tuple[ProcessContext, weakref.ref[dist.ProcessGroup] | None] | None = None


def _of_job(where: torch.device | str | None) -> ProcessContext:
    global _latest
    device = _default_device() if where is None else torch.device(where)
    world = dist.group.WORLD if _distributed_is_available() else None
    if _latest is not None:
        context, known = _latest
        if (known() if known is not None else None) is world and context.device == device:
            return context
    if world is None:
        context, known = ProcessContext(0, 1, device, is_main=True), None
    else:
        rank = dist.get_rank()
        context = ProcessContext(rank, dist.get_world_size(), device, is_main=rank == 0)
        known = weakref.ref(world)
    _latest = context, known
    return context
