"""Padded samplers: which samples of a batch are real, so that an evaluation counts no sample twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, overload

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from hjepa_dist_metrics.errors import ConfigError


class _Sized(Protocol):
    def __len__(self) -> int: ...


class ValidSamples:
    """Say of each position of one rank's padded share whether it is a sample and not padding.

    Torch's DistributedSampler deals `num_samples` samples out to `world_size` ranks in turns, and repeats
    samples from the front until every rank has as many. Position p of rank r is the sample number
    p * world_size + r of that order: padding from `num_samples` on.
    """

    def __init__(self, num_samples: int, rank: int, world_size: int) -> None:
        if num_samples < 0 or not 0 <= rank < world_size:
            raise ConfigError(
                f"expected a rank of {world_size} ranks and at least 0 samples, got rank {rank} and "
                f"{num_samples} samples"
            )
        self.num_samples, self.rank, self.world_size = num_samples, rank, world_size

    @property
    def count(self) -> int:
        """Return how many samples this rank has without padding."""
        return max(0, -(-(self.num_samples - self.rank) // self.world_size))

    def mask(self, start: int, size: int, device: torch.device | str | None = None) -> Tensor:
        """Return bool [size]: which of the positions from `start` on are samples."""
        return torch.arange(start, start + size, device=device) < self.count

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Yield the mask of each batch of `batch_size`, the last one shorter, padding included."""
        positions = -(-self.num_samples // self.world_size)
        for start in range(0, positions, batch_size):
            yield self.mask(start, min(batch_size, positions - start))


@overload
def valid_samples(sampler: DistributedSampler[object], /) -> ValidSamples: ...
@overload
def valid_samples(sampler: int, rank: int, world_size: int, /) -> ValidSamples: ...
def valid_samples(
    sampler: DistributedSampler[object] | int, rank: int | None = None, world_size: int | None = None, /
) -> ValidSamples:
    """Tell padding from samples: of a DistributedSampler, or of (num_samples, rank, world_size).

        valid = valid_samples(loader.sampler)
        for images, mask in zip(loader, valid.batches(loader.batch_size)):
            metric.update(model(images), valid=mask)

    Right for every shuffle and epoch. With `drop_last` nothing is padded, and every position is valid.
    """
    if isinstance(sampler, DistributedSampler):
        dataset: _Sized = sampler.dataset  # type: ignore[assignment]
        total = sampler.total_size if sampler.drop_last else len(dataset)
        return ValidSamples(total, sampler.rank, sampler.num_replicas)
    if rank is None or world_size is None:
        raise ConfigError("expected a DistributedSampler, or num_samples, rank and world_size")
    return ValidSamples(int(sampler), rank, world_size)
