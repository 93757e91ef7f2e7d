"""The implicit video representation: from a patch's coordinates, over a shared decoder, to several heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hjepa_dist_metrics.reference.dual_head.config import PATCHES_PER_FRAME, UPSCALING, ModelConfig

HEAD_SUFFIX = "_head"


class Decoder(nn.Module):
    """Turn coordinates into feature maps: an MLP, then three stages that double the sides."""

    def __init__(self, inputs: int, width: int, hidden: int, patch_size: tuple[int, int]) -> None:
        super().__init__()
        self.shape = (width, patch_size[0] // UPSCALING, patch_size[1] // UPSCALING)
        size = math.prod(self.shape)
        self.mlp = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, size), nn.GELU())
        channels = (width, width, width // 2, width // 2)
        stages = pairwise(channels)
        self.stages = nn.ModuleList(nn.Conv2d(a, 4 * b, 3, padding=1) for a, b in stages)
        self.channels = channels[-1]

    def forward(self, coordinates: Tensor) -> Tensor:
        """Return features [B, channels, h, w] of coordinates [B, inputs]."""
        x: Tensor = self.mlp(coordinates).reshape(-1, *self.shape)
        for stage in self.stages:
            x = F.gelu(F.pixel_shuffle(stage(x), 2))
        return x


class PatchField(nn.Module):
    """Represent videos patch by patch: the weights are the videos.

    `heads` make a module each from the decoder's number of channels; as parts of the model they are called
    `{name}_head`, beside `decoder`.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_videos: int,
        patch_size: tuple[int, int],
        heads: Mapping[str, Callable[[int], nn.Module]],
    ) -> None:
        super().__init__()
        self.num_videos, self.frequencies = num_videos, config.frequencies
        inputs = 2 * config.frequencies + num_videos + PATCHES_PER_FRAME
        self.decoder = Decoder(inputs, config.width, config.hidden, patch_size)
        self.head_names = list(heads)
        for name, make in heads.items():
            self.add_module(name + HEAD_SUFFIX, make(self.decoder.channels))

    def parts(self) -> dict[str, nn.Module]:
        """Return the heads and the decoder by name."""
        heads = {name + HEAD_SUFFIX: self.get_submodule(name + HEAD_SUFFIX) for name in self.head_names}
        return {**heads, "decoder": self.decoder}

    def forward(self, video: Tensor, time: Tensor, place: Tensor) -> dict[str, Tensor]:
        """Return each head's output for patches [B] given by video, time in [0, 1] and place in the frame."""
        octaves = math.pi * 2.0 ** torch.arange(self.frequencies, device=time.device)
        angles = time[:, None] * octaves
        which = [F.one_hot(video, self.num_videos), F.one_hot(place, PATCHES_PER_FRAME)]
        features = self.decoder(torch.cat([angles.sin(), angles.cos(), *(w.to(time) for w in which)], dim=1))
        return {name: self.get_submodule(name + HEAD_SUFFIX)(features) for name in self.head_names}


class RGBHead(nn.Module):
    """Paint: features [B, C, h, w] to colours [B, 3, h, w] in [0, 1]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Return colours."""
        return torch.sigmoid(self.conv(features))


class SemanticHead(nn.Module):
    """Describe: features [B, C, h, w] to an embedding [B, dim], from 3 x 3 pooled cells."""

    CELLS = 3

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(channels * self.CELLS**2, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return embeddings."""
        embeddings: Tensor = self.mlp(F.adaptive_avg_pool2d(features, self.CELLS).flatten(1))
        return embeddings
