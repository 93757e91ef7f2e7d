"""Any folder of images, through Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hjepa_dist_metrics.errors import ConfigError, MissingExtraError
from hjepa_dist_metrics.reference.data.images import SPLIT_SEED, ImageItem, ImageSplits

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_VERIFIABLE = frozenset({"PNG"})
"""Formats whose `verify` reads checksums, so that nothing need be decoded."""


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "train", "Reading an image folder") from error
    return Image


def find_images(root: str | Path) -> list[Path]:
    """Return all images below `root`, in an order that depends on their relative names only."""
    folder = Path(root)
    if not folder.is_dir():
        raise ConfigError(f"data.root is {str(root)!r}, which is not a folder")
    found = [p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
    if not found:
        raise ConfigError(
            f"data.root {str(root)!r} holds no images; looked for {', '.join(sorted(SUFFIXES))}"
        )
    return sorted(found, key=lambda p: p.relative_to(folder).as_posix())


def check_image(path: Path) -> None:
    """Raise ConfigError naming the file unless Pillow can read it; as cheap as the format allows."""
    image_module = _pillow()
    try:
        with image_module.open(path) as image:
            if image.format in _VERIFIABLE:
                image.verify()
            else:
                image.draft(
                    "L", (8, 8)
                )  # JPEG: decode at an eighth of the size, which still meets a truncation
                image.load()
    except Exception as error:
        raise ConfigError(f"data.root holds a broken image: {path} ({error})") from error


class FolderImages:
    """Serve resized, centre-cropped images from files: float32 RGB [3, H, W], about -1 to 1."""

    def __init__(self, paths: Sequence[Path], labels: torch.Tensor, image_size: tuple[int, int]) -> None:
        self.paths, self.labels, self.image_size = list(paths), labels, image_size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> ImageItem:
        image = self._read(self.paths[index])
        return ImageItem(image=image, index=int(index), label=int(self.labels[index]))

    def _read(self, path: Path) -> torch.Tensor:
        image_module = _pillow()
        try:
            with image_module.open(path) as image:
                pixels = np.asarray(_resize_crop(image.convert("RGB"), self.image_size), dtype=np.float32)
        except Exception as error:
            raise ConfigError(f"data.root holds a broken image: {path} ({error})") from error
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous() / 127.5 - 1.0


def _resize_crop(image: Any, size: tuple[int, int]) -> Any:
    """Scale so that the image covers `size` (height, width), then crop the centre."""
    height, width = size
    scale = max(height / image.height, width / image.width)
    scaled = max(round(image.width * scale), width), max(round(image.height * scale), height)
    image = image.resize(scaled, _pillow().Resampling.BILINEAR)
    left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
    return image.crop((left, top, left + width, top + height))


def load_image_folder(root: str | Path, image_size: tuple[int, int], val_fraction: float) -> ImageSplits:
    """Return a deterministic split of a folder's images; the class is the first sub-folder, if all have one.

    Every file is checked before training starts: ConfigError names a broken one, an empty or a missing
    folder.
    """
    folder = Path(root)
    paths = find_images(folder)
    for path in paths:
        check_image(path)
    parts = [path.relative_to(folder).parts for path in paths]
    classed = all(len(part) > 1 for part in parts)
    names = sorted({part[0] for part in parts}) if classed else []
    labels = torch.tensor([names.index(part[0]) if classed else -1 for part in parts])
    order = np.random.default_rng(SPLIT_SEED).permutation(len(paths))
    num_val = max(round(len(paths) * val_fraction), 1)
    if num_val >= len(paths):
        raise ConfigError(
            f"data.root {str(root)!r} holds {len(paths)} image(s): too few for training and validation"
        )
    val, train = (
        FolderImages([paths[i] for i in part], labels[torch.from_numpy(part)], image_size)
        for part in (np.sort(order[:num_val]), np.sort(order[num_val:]))
    )
    return ImageSplits(train, val, image_size, 3, tuple(names))
