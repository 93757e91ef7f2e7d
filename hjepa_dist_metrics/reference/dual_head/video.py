"""Videos out of photographs: a camera pans and zooms, and each frame is cut into patches. No download."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError, MissingExtraError
from hjepa_dist_metrics.reference.dual_head.config import GRID, PATCHES_PER_FRAME, DataConfig
from hjepa_dist_metrics.values import Image

_ENLARGED = 3
_NEAREST, _FARTHEST = 0.5, 0.75
"""Share of the photograph's sides that the camera sees: half way through the video, and at its ends."""


@dataclass(frozen=True)
class Patches:
    """Hold the patches of one split, 8 in a row for each frame.

    `pixels` float32 [N, 3, h, w] in [0, 1]; `frame` int64 [N], the number of the frame in the split; `video`
    int64 [N]; `time` float32 [N] in [0, 1]; `place` int64 [N], the patch's number in its frame.
    """

    pixels: Tensor
    frame: Tensor
    video: Tensor
    time: Tensor
    place: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def num_frames(self) -> int:
        """Return the number of frames."""
        return len(self) // PATCHES_PER_FRAME

    def to(self, device: torch.device) -> Patches:
        """Return the patches on a device."""
        parts = (self.pixels, self.frame, self.video, self.time, self.place)
        return Patches(*(part.to(device) for part in parts))


def load_videos(config: DataConfig) -> dict[str, Patches]:
    """Return the splits "train" and "val": frames of scikit-learn's two photographs, always the same."""
    return split_frames([film(photo, config) for photo in _photographs()], config.val_every)


def split_frames(videos: Sequence[Tensor], val_every: int) -> dict[str, Patches]:
    """Keep every `val_every`-th frame of each video [T, 3, H, W] for validation and cut all into patches.

    Raises ConfigError for frames that are not images in [0, 1], and for a split that would be empty.
    """
    for number, frames in enumerate(videos):
        if frames.ndim != 4 or frames.shape[1] != 3:
            raise ConfigError(f"video {number}: expected frames [T, 3, H, W], got {list(frames.shape)}")
        low, high = (float(bound) for bound in torch.aminmax(frames))
        if not (low >= 0.0 and high <= 1.0):
            raise ConfigError(f"video {number}: images must lie in [0, 1], got {low:.4g} to {high:.4g}")
    kept = [torch.arange(len(frames)) % val_every == val_every // 2 for frames in videos]
    splits = {"train": [~mask for mask in kept], "val": kept}
    for name, masks in splits.items():
        if not any(bool(mask.any()) for mask in masks):
            lengths = [len(frames) for frames in videos]
            raise ConfigError(
                f"the split {name!r} is empty: data.val_every is {val_every}, videos have {lengths} frames"
            )
    return {name: _cut(videos, masks) for name, masks in splits.items()}


def film(photograph: Tensor, config: DataConfig) -> Tensor:
    """Return the frames [T, 3, H, W] that a camera sees which pans over [3, h, w] and zooms in and out."""
    height, width = config.frame_size
    # As large as a frame at the nearest zoom, so that no frame aliases.
    scene = F.adaptive_avg_pool2d(photograph, (round(height / _NEAREST), round(width / _NEAREST)))
    times = torch.linspace(0.0, 1.0, config.frames_per_video)
    grids = torch.stack([_view(float(time), height, width) for time in times])
    return F.grid_sample(scene.expand(len(grids), -1, -1, -1), grids, align_corners=True).clamp(0.0, 1.0)


def _view(time: float, height: int, width: int) -> Tensor:
    """Return where each pixel of a frame looks, [H, W, 2] in [-1, 1]."""
    seen = _FARTHEST - (_FARTHEST - _NEAREST) * math.sin(math.pi * time)
    across, down = (1.0 - seen) * (2.0 * time - 1.0) * 0.9, (1.0 - seen) * math.sin(2 * math.pi * time) * 0.5
    rows, columns = torch.linspace(-seen, seen, height) + down, torch.linspace(-seen, seen, width) + across
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=-1)


def _cut(videos: Sequence[Tensor], masks: Sequence[Tensor]) -> Patches:
    frames = torch.cat([video[mask] for video, mask in zip(videos, masks, strict=True)])
    number, (rows, columns) = len(frames), GRID
    height, width = frames.shape[2] // rows, frames.shape[3] // columns
    cut = frames.reshape(number, 3, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5)
    times = [torch.linspace(0.0, 1.0, len(mask))[mask] for mask in masks]
    video = torch.cat([torch.full_like(time, i, dtype=torch.int64) for i, time in enumerate(times)])
    return Patches(
        cut.reshape(-1, 3, height, width).contiguous(),
        torch.arange(number).repeat_interleave(PATCHES_PER_FRAME),
        video.repeat_interleave(PATCHES_PER_FRAME),
        torch.cat(times).repeat_interleave(PATCHES_PER_FRAME),
        torch.arange(PATCHES_PER_FRAME).repeat(number),
    )


def join_patches(patches: Tensor) -> Tensor:
    """Return the frame [3, H, W] of its 8 patches [8, 3, h, w]."""
    rows, columns = GRID
    _, channels, height, width = patches.shape
    grid = patches.reshape(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return grid.reshape(channels, rows * height, columns * width)


def to_image(colours: Tensor) -> Image:
    """Return colours [3, H, W] in [0, 1] as a picture, three pixels a side for each."""
    pixels = (colours.detach().cpu().float().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    large = pixels.permute(1, 2, 0).repeat_interleave(_ENLARGED, 0).repeat_interleave(_ENLARGED, 1)
    return Image(large.contiguous().numpy())


def _photographs() -> list[Tensor]:
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "train", "The dual-head data set") from error
    images = load_sample_images().images
    return [torch.tensor(image).permute(2, 0, 1).float() / 255.0 for image in images]
