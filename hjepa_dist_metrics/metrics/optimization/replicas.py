"""Whether the copies of a model that ranks train are still copies of each other, bit by bit."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.catalog.limits import NOTHING
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.metrics.kernels.checksum import Checksums
from hjepa_dist_metrics.parallel.layout import ParallelLayout
from hjepa_dist_metrics.parallel.sharding.placement import local_piece
from hjepa_dist_metrics.parallel.sharding.replicas import NamedTensors, is_replicated, replicated_tensors
from hjepa_dist_metrics.states.base import follow
from hjepa_dist_metrics.states.ranks.votes import Votes
from hjepa_dist_metrics.states.sketches.hashing import mix

_TAGS = {"parameters": "parameters/replica_disagreement", "buffers": "parameters/buffer_disagreement"}


class ReplicaAgreement(DistributedMetric):
    """Compare checksums of a model that every rank has all of.

    `parameters/replica_disagreement`, the number of ranks whose parameters differ from those of most ranks by
    a bit or more, and `parameters/replica_disagreement_rank`, the lowest of them, where there is one; the
    same for buffers as `parameters/buffer_disagreement` and `parameters/buffer_disagreement_rank`.

    Of the buffers those count that have not changed since the update before: a batch norm's running mean
    changes on each rank by the rank's own batches. A rank whose buffers stand still while they change
    elsewhere is one that differs. Nothing is reported where a parameter is sharded, and where the ranks'
    models are of different structure, as the stages of a pipeline. Experts of a `layout` are left out, and
    all that its tensor-parallel ranks hold.

    >>> agreement = ReplicaAgreement(nn.Linear(2, 1))
    >>> agreement.update(step=0)
    >>> agreement.compute()  # one rank agrees with itself: there is nothing to say
    {}
    """

    def __init__(self, model: nn.Module, layout: ParallelLayout | None = None) -> None:
        self.add_state("parameters", Votes())
        self.add_state("buffers", Votes())
        split = layout is not None and bool(layout.tensor)
        self._model = model if is_replicated(model) and not split else None
        self._layout = layout
        self._checksums: dict[str, tuple[int, Checksums]] = {}
        self._buffer_keys: Tensor | None = None

    @property
    def buffer_keys(self) -> list[int]:
        """Return what tells whether buffers change until the next update, for a checkpoint; this waits."""
        return [] if self._buffer_keys is None else self._buffer_keys.tolist()

    @buffer_keys.setter
    def buffer_keys(self, keys: Sequence[int]) -> None:
        self._buffer_keys = torch.tensor(keys, dtype=torch.int64, device="cpu") if keys else None

    def update(self, step: int) -> None:
        """Read parameters and buffers after a step's update."""
        if self._model is None:
            return
        named = self._named(self._model)  # anew: modules replace their buffers
        if named["parameters"]:
            kind, keys = self._keys("parameters", named["parameters"])
            self.parameters.update(_joined(keys), kind, step)
        if not named["buffers"]:
            return
        kind, keys = self._keys("buffers", named["buffers"])
        before, self._buffer_keys = self._buffer_keys, keys
        if before is not None and len(before) == len(keys):
            constant = torch.where(keys == follow(before, keys), keys, torch.zeros_like(keys))
            self.buffers.update(_joined(constant), kind, step)

    def _named(self, model: nn.Module) -> dict[str, NamedTensors]:
        """Return what every rank should have alike."""
        found, layout = replicated_tensors(model), self._layout
        if layout is None:
            return found
        return {
            kind: [(n, t) for n, t in named if not layout.differs_along(n)] for kind, named in found.items()
        }

    def _keys(self, name: str, named: Sequence[tuple[str, Tensor]]) -> tuple[int, Tensor]:
        """Return a number of the tensors' structure, and their keys."""
        tensors = [local_piece(tensor) for _, tensor in named]
        structure = _structure(named, 0 if self._layout is None else self._layout.stage)
        if name not in self._checksums or self._checksums[name][0] != structure:
            self._checksums[name] = structure, Checksums(tensors)
        return structure, self._checksums[name][1](tensors)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tags; {} of a single rank."""
        tags: dict[str, Any] = {}
        for name, tag in _TAGS.items():
            verdict = states[name].verdict
            if verdict is not None:
                tags[tag] = float(verdict.different)
                if verdict.first is not None:
                    tags[f"{tag}_rank"] = float(verdict.first)
        return tags


def _joined(keys: Tensor) -> Tensor:
    """Return one key of several, which depends on their order."""
    places = torch.arange(len(keys), dtype=torch.int64, device=keys.device)
    return mix(mix(keys, 3) + mix(places, 4), 5).sum()


def _structure(named: Sequence[tuple[str, Tensor]], stage: int) -> int:
    """Return a number that is the same where names, shapes, types and the pipeline stage are."""
    return zlib.crc32(repr((stage, [(name, tensor.dtype, tensor.shape) for name, tensor in named])).encode())


ENTRIES = (
    Entry(
        "parameters/replica_disagreement",
        "ranks with other parameters",
        "Number of ranks whose copy of the model's parameters differs from that of most ranks, in any bit. "
        "Left out where parameters are sharded.",
        unit="ranks",
        healthy="0; others train another model, whose gradients are averaged with those of the rest",
        bounds=NOTHING,
    ),
    Entry(
        "parameters/replica_disagreement_rank",
        "first rank with other parameters",
        "Number of the lowest rank behind parameters/replica_disagreement.",
        unit="rank",
    ),
    Entry(
        "parameters/buffer_disagreement",
        "ranks with other buffers",
        "Number of ranks on which buffers that do not change differ from those of most ranks, or do not "
        "change where they do elsewhere.",
        unit="ranks",
        healthy="0; others evaluate another model",
        bounds=NOTHING,
    ),
    Entry(
        "parameters/buffer_disagreement_rank",
        "first rank with other buffers",
        "Number of the lowest rank behind parameters/buffer_disagreement.",
        unit="rank",
    ),
)
