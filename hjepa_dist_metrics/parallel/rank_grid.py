"""The ranks of a job as a grid with named dimensions, read off a DeviceMesh or put together from groups."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch.distributed as dist

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.parallel.collectives import gather_json

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True, eq=False)
class RankGrid:
    """Hold the place of every rank along the named dimensions.

    `ranks` int [n] are the global ranks in rising order, `places` int [n, dimensions] their coordinates,
    `groups` this rank's group along each dimension, `group` the group of all ranks.
    """

    names: tuple[str, ...]
    ranks: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    groups: Mapping[str, ProcessGroup]
    group: ProcessGroup

    @classmethod
    def of_mesh(cls, mesh: DeviceMesh) -> RankGrid:
        """Return the grid of a DeviceMesh. A collective call where the mesh leaves out ranks of the job."""
        names = tuple(mesh.mesh_dim_names or ())
        if not names:
            raise ConfigError(
                "expected a DeviceMesh with named dimensions, as init_device_mesh(..., "
                "mesh_dim_names=('pp', 'dp')) makes one"
            )
        if mesh.get_coordinate() is None:
            raise ConfigError(f"rank {dist.get_rank()} is not part of the mesh {mesh}")
        table = mesh.mesh.cpu().numpy().astype(np.int64)
        places = np.stack(np.unravel_index(np.arange(table.size), table.shape), axis=1)
        order = np.argsort(table.reshape(-1))
        if table.size == dist.get_world_size():
            group = _world()
        else:
            group = (mesh._flatten() if len(names) > 1 else mesh).get_group()
        groups = {name: mesh.get_group(name) for name in names}
        return cls(names, table.reshape(-1)[order], places[order], groups, group)

    @classmethod
    def of_groups(cls, groups: Mapping[str, ProcessGroup]) -> RankGrid:
        """Return the grid in which this rank's group along each dimension is given. A collective call.

        All ranks of the job call it with the same names. Two ranks have the same coordinate along a dimension
        where they have the same number in their groups along it.
        """
        own = {name: dist.get_rank(group) for name, group in groups.items()}
        everybody = gather_json(own, _world())
        names = tuple(groups)
        if any(tuple(other) != names for other in everybody):
            raise ConfigError(
                f"expected the same dimensions on every rank, got {[list(o) for o in everybody]}"
            )
        places = np.array([[other[name] for name in names] for other in everybody], dtype=np.int64)
        return cls(names, np.arange(len(everybody)), places, dict(groups), _world())

    @property
    def own(self) -> npt.NDArray[np.int64]:
        """Return this rank's coordinates."""
        place: npt.NDArray[np.int64] = self.places[np.searchsorted(self.ranks, dist.get_rank())]
        return place

    def coordinate(self, name: str) -> int:
        """Return this rank's coordinate along a dimension."""
        return int(self.own[self.names.index(name)])

    def size(self, name: str) -> int:
        """Return how many ranks lie along a dimension."""
        return int(self.places[:, self.names.index(name)].max()) + 1

    def peers(self, names: Collection[str]) -> npt.NDArray[np.int64]:
        """Return the global ranks whose coordinates along `names` are this rank's, in rising order."""
        columns = [self.names.index(name) for name in names]
        alike = (self.places[:, columns] == self.own[columns]).all(axis=1)
        peers: npt.NDArray[np.int64] = self.ranks[alike]
        return peers

    def coordinates(self, ranks: npt.NDArray[np.int64], name: str) -> npt.NDArray[np.int64]:
        """Return the coordinates of ranks along a dimension."""
        found: npt.NDArray[np.int64] = self.places[np.searchsorted(self.ranks, ranks), self.names.index(name)]
        return found


def _world() -> ProcessGroup:
    world = dist.group.WORLD
    if world is None:
        raise ConfigError("a layout needs torch.distributed: call init_process_group first")
    return world
