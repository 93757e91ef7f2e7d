"""Encoders side by side, and a global embedding of what they all say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_dist_metrics.metrics.multimodal.modalities import matched_rows
from hjepa_dist_metrics.reference.multimodal.modality import GLOBAL, Modality

SCALE = "scale"
_LARGEST_SCALE = 100.0


class MultimodalModel(nn.Module):
    """Embed every modality in one space, and from the mean of their unit embeddings a global one."""

    def __init__(self, modalities: Sequence[Modality], dim: int, temperature: float) -> None:
        super().__init__()
        self.names = [modality.name for modality in modalities]
        for modality in modalities:  # at the top, so that gradients are told apart by name
            self.add_module(_module_name(modality.name), modality.encoder(dim))
        self.fusion = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return embeddings [B, dim] by name, not normalised, `global` too, and `scale`, 1 / temperature."""
        encoded = {name: self.get_submodule(_module_name(name))(inputs[name]) for name in self.names}
        rows = matched_rows(encoded, self.names, same_width=True)
        units = torch.stack([F.normalize(tensor.float(), dim=-1) for tensor in rows])
        scale = self.log_scale.exp().clamp(max=_LARGEST_SCALE)
        return {**encoded, GLOBAL: self.fusion(units.mean(dim=0)), SCALE: scale}


def _module_name(modality: str) -> str:
    return f"{modality}_encoder"


class Positional(nn.Module):
    """Take the modalities' inputs in order instead of by name, as a tracer gives them."""

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the embeddings in the order of the names, and the global one."""
        embedded = self.model(dict(zip(self.model.names, inputs, strict=True)))
        return tuple(embedded[name] for name in (*self.model.names, GLOBAL))
