"""Two ranks under torchrun with batches of uneven size; the argument is the directory to write to."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from hjepa_dist_metrics.integrations.lightning import MetricsCallback, MetricsLogger
from tests.integrations.lightning import modules

SIZES = {0: (3, 1, 4), 1: (1, 2, 1)}  # of a rank's batches
VALIDATION = {0: (4, 1), 1: (2, 3)}


def rows(sizes: dict[int, tuple[int, ...]], seed: int) -> dict[int, list[list]]:
    """Return each rank's batches as lists of samples."""
    data = iter(modules.samples(sum(map(sum, sizes.values())), seed=seed))
    return {rank: [[next(data) for _ in range(size)] for size in own] for rank, own in sizes.items()}


def loader(sizes: dict[int, tuple[int, ...]], seed: int) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(Ranked(rows(sizes, seed)), batch_size=None)


class Ranked(torch.utils.data.IterableDataset):
    """Give this rank's batches, once the process group is there."""

    def __init__(self, batches: dict[int, list[list]]) -> None:
        self.batches = batches

    def __iter__(self):
        for batch in self.batches[dist.get_rank()]:
            inputs, labels = zip(*batch, strict=True)
            yield torch.stack(inputs), torch.tensor(labels)


class Sharded(modules.Classifier):
    """The classifier under FSDP2."""

    def configure_model(self):
        if not isinstance(self.head.weight, DTensor):
            for module in (self.body, self.head, self):
                fully_shard(module, mesh=self.device_mesh["data_parallel"])


def train(directory: Path, module: modules.Classifier, strategy: str | ModelParallelStrategy) -> None:
    metrics = MetricsCallback(modules.config(directory), watch_features="body", exact_means=True)
    given = {"devices": 2, "strategy": strategy, "use_distributed_sampler": False}
    trainer = modules.trainer(directory, [metrics], logger=MetricsLogger("logged", directory), **given)
    trainer.fit(module, loader(SIZES, 1), loader(VALIDATION, 2))
    assert trainer.world_size == 2


def main(directory: Path) -> None:
    train(directory / "ddp", modules.Classifier(), "ddp")
    sharded = Sharded()
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    train(directory / "fsdp2", sharded, strategy)
    assert isinstance(sharded, FSDPModule)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
