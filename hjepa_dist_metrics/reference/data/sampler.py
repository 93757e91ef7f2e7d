"""The order of the samples: one global batch a step, the same at every world size."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from hjepa_dist_metrics.errors import ConfigError


class GlobalBatchSampler(torch.utils.data.Sampler[list[int]]):
    """Yield this rank's share of every global batch, for `DataLoader(batch_sampler=...)`.

    The order is a function of (seed, epoch). Step s takes `global_batch_size` samples of it; micro-step a of
    `accumulation_steps` takes every accumulation_steps-th of those, from a on; rank r every world_size-th of
    these, from r on. Shares differ by at most one sample. The last incomplete batch of an epoch is dropped.
    Raises ConfigError where a micro-batch has fewer samples than there are ranks, or an epoch has no whole
    batch.
    """

    def __init__(
        self,
        num_samples: int,
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        accumulation_steps: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank is {rank}; allowed: 0 to {world_size - 1}")
        if global_batch_size < world_size * accumulation_steps:
            raise ConfigError(
                f"data.batch_size is {global_batch_size}; "
                f"allowed: {world_size * accumulation_steps} or more, "
                f"one sample a rank ({world_size}) in each accumulation step ({accumulation_steps})"
            )
        if num_samples < global_batch_size:
            raise ConfigError(
                f"data.batch_size is {global_batch_size}; "
                f"allowed: at most {num_samples}, the number of training samples"
            )
        self.num_samples, self.global_batch_size = num_samples, global_batch_size
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.accumulation_steps = accumulation_steps
        self.epoch = self.start_step = 0

    @property
    def steps_per_epoch(self) -> int:
        """Return the optimizer steps of a whole epoch."""
        return self.num_samples // self.global_batch_size

    def sizes(self, micro: int = 0) -> list[int]:
        """Return how many samples each rank has of a global batch's micro-step."""
        samples = len(range(micro, self.global_batch_size, self.accumulation_steps))
        return [len(range(rank, samples, self.world_size)) for rank in range(self.world_size)]

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Choose the epoch of the next iteration and the step in it to start from (to resume)."""
        if not 0 <= start_step <= self.steps_per_epoch:
            raise ConfigError(f"start_step is {start_step}; allowed: 0 to {self.steps_per_epoch}")
        self.epoch, self.start_step = epoch, start_step

    def __len__(self) -> int:
        return (self.steps_per_epoch - self.start_step) * self.accumulation_steps

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_samples)
        for step in range(self.start_step, self.steps_per_epoch):
            batch = order[step * self.global_batch_size : (step + 1) * self.global_batch_size]
            for micro in range(self.accumulation_steps):
                share = batch[micro :: self.accumulation_steps][self.rank :: self.world_size]
                yield [int(i) for i in share]
