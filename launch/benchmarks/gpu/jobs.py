"""Training jobs in bf16 with compiled blocks: an H-JEPA with a ViT-B/16, a language model of 110 M."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks.gpu.language import Language, LanguageSize
from hjepa_dist_metrics.reference.hjepa.config import ModelConfig, ObjectiveConfig
from hjepa_dist_metrics.reference.hjepa.masking import MultiBlockMaskGenerator
from hjepa_dist_metrics.reference.hjepa.model import HJEPA
from hjepa_dist_metrics.reference.hjepa.objective import HJEPAObjective

_BATCHES = 4  # different ones, made before anything is timed
_VIT_B = ModelConfig(
    patch_size=16,
    embed_dim=768,
    depth=12,
    num_heads=12,
    mlp_ratio=4.0,
    predictor_dim=384,
    predictor_depth=6,
)
_TINY_VIT = ModelConfig(patch_size=8, embed_dim=32, depth=2, num_heads=2, predictor_dim=16, predictor_depth=1)
_TINY_LANGUAGE = LanguageSize(width=32, layers=2, heads=2, vocabulary=64, length=16)


class Job(Protocol):
    """Train something: `forward` gives the loss and what a monitor is handed, `after` ends a step."""

    name: str
    samples: int

    @property
    def model(self) -> nn.Module:
        """The model to train."""

    def forward(self, step: int) -> tuple[Tensor, dict[str, Any]]:
        """Return the loss to differentiate, and the arguments of `TrainingMonitor.step`."""

    def after(self, step: int) -> Mapping[str, Any]:
        """Do what follows the optimizer's step; return what it adds to those arguments."""


def compile_blocks(model: nn.Module, kind: type[nn.Module], device: torch.device) -> None:
    """Compile each block in place: one graph serves all blocks of a kind, in a twelfth of the time."""
    backend = "inductor" if device.type == "cuda" else "eager"
    for module in model.modules():
        if isinstance(module, kind):
            module.compile(backend=backend)


class HJEPAJob:
    """Train the reference H-JEPA on random images of 224 x 224."""

    def __init__(self, device: torch.device, batch: int, tiny: bool) -> None:
        from hjepa_dist_metrics.reference.hjepa.layers import Block

        config, size = (_TINY_VIT, (32, 32)) if tiny else (_VIT_B, (224, 224))
        self.name = "H-JEPA, tiny" if tiny else "H-JEPA, ViT-B/16"
        torch.manual_seed(0)
        self.model = HJEPA(config, size, in_channels=3, total_steps=1_000_000).to(device)
        compile_blocks(self.model, Block, device)
        self.samples, self._device = batch, device
        self._objective = HJEPAObjective(ObjectiveConfig(), config.hierarchy_weights)
        self._images = [torch.randn(batch, 3, *size, device=device) for _ in range(_BATCHES)]
        masks = MultiBlockMaskGenerator(self.model.grid, min_visible=3)
        drawn = [masks.generate(torch.arange(batch) + i * batch, 0) for i in range(_BATCHES)]
        self._visible = max(int((~mask).sum(dim=1).max()) for mask in drawn)
        self._masks = [mask.to(device) for mask in drawn]

    def forward(self, step: int) -> tuple[Tensor, dict[str, Any]]:
        """Mask, predict, compare."""
        images, mask = self._images[step % _BATCHES], self._masks[step % _BATCHES]
        with torch.autocast(self._device.type, torch.bfloat16):
            output = self.model(images, mask, max_visible=self._visible)
            result = self._objective(output)
        return result.loss, {
            "losses": result.losses,
            "tokens": self.samples * self.model.get_num_patches(),
            "features": output["targets"],
            "context_features": output["context_features"],
            "context_valid": output["context_valid"],
            "predictions": output["predictions"],
            "targets": result.targets,
            "prediction_valid": output["masks_valid"],
            "mask": mask.reshape(-1, *self.model.grid),
            "images": images,
        }

    def after(self, step: int) -> Mapping[str, Any]:
        """Move the teacher."""
        return {"momentum": self.model.update_target_encoder(step)}


class LanguageJob:
    """Train the language model on random tokens."""

    def __init__(self, device: torch.device, batch: int, tiny: bool) -> None:
        from benchmarks.gpu.language import Block

        size = _TINY_LANGUAGE if tiny else LanguageSize()
        self.name = "language model, tiny" if tiny else "language model, 110 M"
        torch.manual_seed(0)
        self.model = Language(size).to(device)
        compile_blocks(self.model, Block, device)
        self.samples, self._device = batch, device
        shape = (batch, size.length + 1)
        self._tokens = [torch.randint(size.vocabulary, shape, device=device) for _ in range(_BATCHES)]

    def forward(self, step: int) -> tuple[Tensor, dict[str, Any]]:
        """Predict the next tokens."""
        tokens = self._tokens[step % _BATCHES]
        with torch.autocast(self._device.type, torch.bfloat16):
            features = self.model(tokens[:, :-1])
            loss = self.model.loss(features, tokens[:, 1:])
        counted = {"losses": loss, "tokens": tokens[:, 1:].numel(), "features": features.detach()}
        return loss, counted

    def after(self, step: int) -> Mapping[str, Any]:
        """Add nothing."""
        return {}
