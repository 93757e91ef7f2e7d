"""A small encoder for each modality of the digits, all into one space."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_dist_metrics.reference.multimodal.captions import PADDING

_HIDDEN, _MAPS = 128, 32


class TextEncoder(nn.Module):
    """Embed word numbers int64 [B, L], 0 for padding, as [B, dim]: words and places, averaged, one layer."""

    def __init__(self, dim: int, words: int, length: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words + 1, _HIDDEN)
        self.places = nn.Parameter(0.02 * torch.randn(length, _HIDDEN))
        self.head = nn.Sequential(
            nn.LayerNorm(_HIDDEN), nn.Linear(_HIDDEN, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, dim)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return [B, dim]."""
        said = (tokens != PADDING).unsqueeze(-1).to(self.places.dtype)
        mixed = ((self.words(tokens) + self.places) * said).sum(dim=1) / said.sum(dim=1).clamp(min=1)
        embedded: Tensor = self.head(mixed)
        return embedded


class ImageEncoder(nn.Module):
    """Embed images [B, C, 8, 8] as [B, dim]: two convolutions and two layers.

    The first convolution is a linear layer on 3 x 3 patches: with one channel the weight of a `Conv2d` gets a
    gradient with strides that DistributedDataParallel has to copy.
    """

    def __init__(self, dim: int, channels: int = 1) -> None:
        super().__init__()
        self.patches = nn.Unfold(3, padding=1)
        self.first = nn.Linear(9 * channels, _MAPS)
        self.second = nn.Conv2d(_MAPS, _MAPS, 3, stride=2, padding=1)
        self.head = nn.Sequential(nn.Linear(_MAPS * 4 * 4, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, dim))

    def forward(self, images: Tensor) -> Tensor:
        """Return [B, dim]."""
        maps = F.gelu(self.first(self.patches(images).transpose(1, 2))).transpose(1, 2)
        maps = F.gelu(self.second(maps.reshape(len(images), _MAPS, *images.shape[-2:])))
        embedded: Tensor = self.head(maps.flatten(start_dim=1))
        return embedded


class AudioEncoder(nn.Module):
    """Embed signals [B, T] as [B, dim]: logarithmic spectra of overlapping frames, a layer, their mean."""

    def __init__(self, dim: int, frame: int = 256) -> None:
        super().__init__()
        self.frame = frame
        self.window: Tensor
        self.register_buffer("window", torch.hann_window(frame), persistent=False)
        self.frames = nn.Sequential(
            nn.LayerNorm(frame // 2 + 1), nn.Linear(frame // 2 + 1, _HIDDEN), nn.GELU()
        )
        self.head = nn.Sequential(nn.Linear(_HIDDEN, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, dim))

    def forward(self, signals: Tensor) -> Tensor:
        """Return [B, dim]."""
        framed = signals.float().unfold(1, self.frame, self.frame // 2) * self.window
        spectra = torch.fft.rfft(framed).abs().log1p()
        embedded: Tensor = self.head(self.frames(spectra).mean(dim=1))
        return embedded
