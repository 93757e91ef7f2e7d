"""What an image data set is to a workload: items with a global index, and a train and a validation part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypedDict

import torch

SPLIT_SEED = 20231
"""Seed of every train/validation split: the split belongs to the data, not to a run."""


class ImageItem(TypedDict):
    """One image: float32 [C, H, W]; its index, which seeds masks and augmentations; its class or -1."""

    image: torch.Tensor
    index: int
    label: int


class ImageSet(Protocol):
    """A map-style data set of images of one size."""

    labels: torch.Tensor
    """int64 [len], -1 where unknown."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> ImageItem: ...


class TensorImages:
    """Serve images from memory: images float32 [N, C, H, W], labels int64 [N]."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> ImageItem:
        return ImageItem(image=self.images[index], index=int(index), label=int(self.labels[index]))


@dataclass(frozen=True)
class ImageSplits:
    """Hold the two parts of a data set and their common shape."""

    train: ImageSet
    val: ImageSet
    image_size: tuple[int, int]
    channels: int
    class_names: tuple[str, ...]
    """Empty where the images have no classes."""


def stack_images(images: ImageSet, indices: torch.Tensor) -> torch.Tensor:
    """Return the images at `indices` as one tensor [B, C, H, W]."""
    return torch.stack([images[int(i)]["image"] for i in indices])
