"""What a tensor's placement means: which ranks hold the rest of it, and whose copy of a piece counts.

A parameter or gradient is plain (every rank has all of it: one process, DDP), a DTensor (FSDP2, HSDP, tensor
and sequence parallelism, in any mixture), or part of FSDP1's flat parameter. Along each direction of a mesh
ranks hold different pieces (`Shard`, and `_StridedShard`, which is one although `is_shard()` denies it), the
same piece (`Replicate`), or addends of it (`Partial`). Nothing here communicates.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parameter import is_lazy

from hjepa_dist_metrics.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True, eq=False)
class Layout:
    """Say what this rank holds of a tensor, along each direction of the mesh it lies on.

    `shards` are the groups whose ranks hold different pieces: what adds up, adds up over each of them in
    turn. `partial` are the groups whose ranks hold addends, with the reduction ("sum" or "avg") that makes
    the value. `mesh` holds the mesh's global ranks, `coordinate` this rank's place, `copies` the directions
    along which the piece is the same; without a mesh every rank has all of the tensor.
    """

    shards: tuple[ProcessGroup, ...] = ()
    partial: tuple[tuple[ProcessGroup, str], ...] = ()
    mesh: npt.NDArray[np.int64] | None = None
    coordinate: tuple[int, ...] = ()
    copies: tuple[int, ...] = ()

    def speaks(self, first: int, rank: int) -> bool:
        """Return whether this rank, global `rank`, counts for its piece in the group whose first is `first`.

        Of all ranks of the group that hold a piece, one speaks: the one whose place equals the first rank's
        along every direction of copies, in the mesh in which the first rank lies.
        """
        if self.mesh is None:
            return rank == first
        place = np.argwhere(self.mesh == first)
        return len(place) > 0 and all(place[0][d] == self.coordinate[d] for d in self.copies)

    def beyond(self, ranks: Sequence[int]) -> tuple[ProcessGroup, ...]:
        """Return the shard groups that reach beyond `ranks`, whose pieces no sync over those adds up."""
        known = set(ranks)
        return tuple(g for g in self.shards if not known.issuperset(dist.get_process_group_ranks(g)))


WHOLE = Layout()


class LayoutReader:
    """Tell the layout of tensors, working out each kind of placement once."""

    def __init__(self) -> None:
        self._known: dict[Any, Layout] = {}

    def __call__(self, tensor: Tensor) -> Layout:
        """Return the tensor's layout."""
        if not is_dtensor(tensor):
            return WHOLE
        mesh, placements = tensor.device_mesh, tuple(tensor.placements)  # type: ignore[attr-defined]
        key = (id(mesh), placements)
        if key not in self._known:
            self._known[key] = _dtensor_layout(mesh, placements)
        return self._known[key]


def _dtensor_layout(mesh: Any, placements: Sequence[Any]) -> Layout:
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        raise ConfigError(f"this rank is not part of the mesh {mesh} that holds a parameter")
    shards, partial, copies = [], [], []
    for dim, placement in enumerate(placements):
        if placement.is_replicate():
            copies.append(dim)
        elif placement.is_partial():
            copies.append(dim)
            partial.append((mesh.get_group(dim), _reduction(placement)))
        else:  # Shard or _StridedShard: is_shard() is false for the latter
            shards.append(mesh.get_group(dim))
    return Layout(tuple(shards), tuple(partial), mesh.mesh.cpu().numpy(), tuple(coordinate), tuple(copies))


def _reduction(placement: Any) -> str:
    name = str(placement.reduce_op)
    if name not in ("sum", "avg"):
        raise ConfigError(
            f"a gradient is partial under the reduction {name!r}; norms are defined for 'sum' and 'avg'"
        )
    return name


def flat_layout(group: ProcessGroup) -> Layout:
    """Return the layout of FSDP1's flat parameter, sharded over `group`."""
    ranks = np.asarray(dist.get_process_group_ranks(group), dtype=np.int64)
    return Layout((group,), (), ranks, (dist.get_rank(group),), ())


def is_dtensor(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor, without importing them where nobody has."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor has its elements in memory, or is a DTensor of such pieces.

    Classes of tensors that do their own arithmetic, as quantised weights do, may have none.
    """
    if is_dtensor(tensor):
        return True
    plain = type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__ and not is_lazy(tensor)
    return plain and tensor.layout is torch.strided and not (tensor.is_nested or tensor.is_quantized)


def local_piece(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor, detached; of a sparse one, the stored values."""
    if type(tensor) is Tensor and not tensor.requires_grad and tensor.layout is torch.strided:
        return tensor  # nearly always
    piece = tensor.detach()
    if type(piece) is not Tensor:
        if is_dtensor(piece):
            piece = piece.to_local()  # type: ignore[attr-defined]
        if hasattr(piece, "wait"):  # the result of an asynchronous collective
            piece = piece.wait()
    if piece.layout == torch.sparse_coo:
        piece = piece.coalesce().values()
    return piece
