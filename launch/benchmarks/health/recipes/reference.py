"""The package's reference jobs as recipes: H-JEPA, the dual-head video job, and text, image and audio."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.health.recipe import Recipe, Step
from hjepa_dist_metrics import TrainingMonitor
from hjepa_dist_metrics.reference.arguments import parse
from hjepa_dist_metrics.reference.workloads import workload_kind

_CONFIGS = Path(__file__).resolve().parents[4] / "configs"


class Reference(Recipe):
    """Train a workload of `hjepa_dist_metrics.reference` by this catalogue's loop.

    `workload` is the job itself; a failure turns what its configuration would, or its attributes.
    """

    config: ClassVar[str]
    overrides: ClassVar[Mapping[str, object]] = {}
    warmup = 20
    cosine = True
    clip = 1.0

    def build(self) -> None:
        """Make the workload and AdamW, as the reference trainer does."""
        overrides = {"training.seed": self.setting.seed, "data.batch_size": self.samples, **self.overrides}
        arguments = [f"--{key}={value}" for key, value in overrides.items()]
        config = parse(["--config", str(_CONFIGS / self.config), *arguments])
        kind = workload_kind(config.workload)
        self.workload: Any = kind.build(config.model, config.data, config.training, self.context)
        self.model = self.workload.model
        self.optimizer = torch.optim.AdamW(self.workload.parameter_groups(), lr=self.base_rate)
        self.level_weights = self.workload.level_weights
        self.epoch = 0

    def attach(self, monitor: TrainingMonitor) -> None:
        """Let the job add metrics of its own."""
        self.workload.attach(monitor)

    def batches(self) -> Iterator[Any]:
        """Yield the epochs' batches, one after another."""
        while True:
            yield from self.workload.batches(self.epoch, 0)
            self.epoch += 1

    def forward(self, batch: Any) -> Step:
        """Return the job's loss."""
        result = self.workload.forward(self.model, batch, self.epoch)
        observed = {name: value for name, value in result.observations.items() if name != "images"}
        return Step(result.loss, result.losses, result.samples, {**observed, "tokens": result.tokens})

    def after_step(self, step: int) -> dict[str, Any]:
        """Do what the job does after a step."""
        return dict(self.workload.after_step(step))

    def validate(self) -> dict[str, Any]:
        """Return the job's evaluation: numbers only."""
        values = self.workload.evaluate()
        return {tag: value for tag, value in values.items() if isinstance(value, (int, float))}


class HJEPA(Reference):
    """The default run, narrower."""

    config = "default.yaml"
    overrides: ClassVar[Mapping[str, object]] = {
        "model.embed_dim": 32,
        "model.depth": 2,
        "model.predictor_dim": 32,
        "training.epochs": 10,
    }
    rate = 2e-3
    steps = 150
    log_every = 5
    batch_size = 32
    variants = 2
    probe_every = 16

    def build(self) -> None:
        """Make the workload; the momentum's schedule has the length of the run."""
        super().build()
        self.model.total_steps = self.steps  # type: ignore[assignment]

    def represent(self) -> tuple[Tensor, Tensor]:
        """Return the target encoder's mean tokens of held-out digits."""
        held_out = self.workload.splits.val
        return self.model.extract_features(held_out.images).mean(dim=1), held_out.labels  # type: ignore[operator]

    def more_facts(self) -> dict[str, float]:
        """Return how far images lie apart, over how far the tokens of an image do."""
        tokens = self.model.extract_features(self.workload.splits.val.images)  # type: ignore[operator]
        images = tokens.mean(dim=1)
        within = (tokens - images[:, None]).square().sum(dim=2).mean()
        return {"between": float((images - images.mean(dim=0)).square().sum(dim=1).mean() / within)}

    def fixed_batch(self) -> dict[str, Tensor]:
        """Return held-out digits."""
        held_out = self.workload.splits.val
        return {"image": held_out.images[:64], "label": held_out.labels[:64], "index": torch.arange(64)}


class DualHead(Reference):
    """The dual-head video job: two heads reconstruct patches."""

    config = "dual_head.yaml"
    overrides: ClassVar[Mapping[str, object]] = {"model.semantic.warmup_epochs": 0}
    rate = 5e-3
    batch_size = 32
    variants = 2
    probe_every = 20

    def fixed_batch(self) -> Tensor:
        """Return patches."""
        return torch.arange(64)


class Multimodal(Reference):
    """Text, image and audio of digits in one space."""

    config = "multimodal.yaml"
    rate = 2e-3
    steps = 140
    log_every = 4
    batch_size = 48
    variants = 2
    probe_every = 10

    def fixed_batch(self) -> Any:
        """Return the first samples."""
        from hjepa_dist_metrics.reference.multimodal.workload import Batch

        index = torch.arange(64)
        return Batch(index, self.workload.data.inputs(index, 0), [64])
