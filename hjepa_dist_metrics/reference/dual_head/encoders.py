"""Frozen image encoders whose embeddings the semantic head learns: one without download, and CLIP."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hjepa_dist_metrics.errors import ConfigError, MissingExtraError
from hjepa_dist_metrics.reference.dual_head.config import SemanticConfig

_CELLS = 2
_ORIENTATIONS = 8
_FREQUENCIES = 6
_LUMA = (0.299, 0.587, 0.114)
# What CLIP's images are standardised by, where its folder does not say.
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_CHUNK = 64


class ImageEncoder(Protocol):
    """Describe images by embeddings; nothing in it is trained."""

    dim: int

    def __call__(self, images: Tensor) -> Tensor:
        """Return embeddings [B, dim] of images [B, 3, H, W] in [0, 1]."""


def build_encoder(config: SemanticConfig, training_images: Tensor) -> ImageEncoder:
    """Return the configured encoder; the handcrafted one is standardised over the training images."""
    if config.encoder == "clip":
        return ClipEncoder(config.path or "")
    return HandcraftedEncoder(training_images)


@torch.no_grad()
def encode(encoder: ImageEncoder, images: Tensor) -> Tensor:
    """Return the embeddings of all images, in chunks."""
    return torch.cat([encoder(chunk).float() for chunk in torch.split(images, _CHUNK)])


class HandcraftedEncoder:
    """Describe an image by its edges, colours and frequencies, as image retrieval did before deep networks.

    In each of 2 x 2 cells: a histogram of 8 edge orientations weighted by their strength (Dalal and Triggs
    2005), mean and standard deviation of the colours; over the whole image 6 x 6 low frequencies of the
    luminance (DCT). Each number is standardised over the training images, so that unlike images have a
    cosine near 0.
    """

    def __init__(self, training_images: Tensor) -> None:
        features = _describe(training_images)
        self.dim = features.shape[1]
        self.mean = features.mean(dim=0)
        self.std = features.std(dim=0, correction=0).clamp(min=1e-6)

    def __call__(self, images: Tensor) -> Tensor:
        """Return standardised descriptions [B, dim]."""
        return (_describe(images) - self.mean) / self.std


class ClipEncoder:
    """Embed images by the vision tower of a CLIP that lies in a local folder; nothing is downloaded."""

    def __init__(self, folder: str) -> None:
        try:
            from transformers import CLIPVisionModelWithProjection
        except ImportError as error:
            raise MissingExtraError("transformers", "clip", "The CLIP encoder") from error
        if not Path(folder).is_dir():
            raise ConfigError(f"model.semantic.path is {folder!r}: there is no such folder")
        try:
            model = CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            line = " ".join(str(error).split())
            raise ConfigError(f"model.semantic.path is {folder!r}: not a CLIP: {line}") from error
        config: Any = model.config
        self.dim, self.size = int(config.projection_dim), int(config.image_size)
        self.model: nn.Module = model.requires_grad_(False)
        self.model.train(False)
        self.mean, self.std = (torch.tensor(v).reshape(3, 1, 1) for v in _standardisation(Path(folder)))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return CLIP's image embeddings [B, dim]."""
        side = (self.size, self.size)
        resized = F.interpolate(images, side, mode="bicubic", antialias=True, align_corners=False)
        pixels = (resized.clamp(0.0, 1.0) - self.mean.to(images)) / self.std.to(images)
        embeddings: Tensor = self.model.to(images.device)(pixel_values=pixels).image_embeds
        return embeddings


def _standardisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    path = folder / "preprocessor_config.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return tuple(found.get("image_mean", _CLIP_MEAN)), tuple(found.get("image_std", _CLIP_STD))


def _describe(images: Tensor) -> Tensor:
    luma = (images * images.new_tensor(_LUMA).reshape(3, 1, 1)).sum(dim=1)
    return torch.cat([_edges(luma), _colours(images), _low_frequencies(luma)], dim=1)


def _edges(luma: Tensor) -> Tensor:
    """Return the orientation histogram of each cell, each image's to the norm 1, [B, 32]."""
    down, across = (torch.gradient(luma, dim=dim)[0] for dim in (1, 2))
    strength = torch.sqrt(down.square() + across.square() + 1e-12)
    angle = torch.remainder(torch.atan2(down, across), math.pi) / math.pi * _ORIENTATIONS
    bins = F.one_hot(angle.long().clamp(max=_ORIENTATIONS - 1), _ORIENTATIONS).to(luma.dtype)
    cells = F.adaptive_avg_pool2d((bins * strength.unsqueeze(-1)).permute(0, 3, 1, 2), _CELLS)
    return F.normalize(cells.flatten(1), dim=1)


def _colours(images: Tensor) -> Tensor:
    """Return mean and standard deviation of each colour in each cell, [B, 24]."""
    mean = F.adaptive_avg_pool2d(images, _CELLS)
    squares = F.adaptive_avg_pool2d(images.square(), _CELLS)
    spread = (squares - mean.square()).clamp(min=0.0).sqrt()
    return torch.cat([mean, spread], dim=1).flatten(1)


def _low_frequencies(luma: Tensor) -> Tensor:
    """Return the lowest coefficients of the cosine transform but the mean, [B, 35]."""
    height, width = (_cosines(size).to(luma) for size in luma.shape[1:])
    return torch.einsum("fh,bhw,gw->bfg", height, luma, width).flatten(1)[:, 1:]


def _cosines(size: int) -> Tensor:
    """Return the first rows of the orthonormal DCT-II, [frequencies, size]."""
    frequency, place = torch.arange(_FREQUENCIES)[:, None], torch.arange(size)[None] + 0.5
    return torch.cos(math.pi / size * frequency * place) * math.sqrt(2.0 / size)
