"""From the run's `data` section to images."""

from __future__ import annotations

from hjepa_dist_metrics.reference.data import ImageSplits, load_digits_splits, load_image_folder
from hjepa_dist_metrics.reference.hjepa.config import DataConfig

_FOLDER_IMAGE_SIZE = (32, 32)


def load_splits(config: DataConfig) -> ImageSplits:
    """Return training and validation images; ConfigError names what is wrong with a folder."""
    if config.kind == "digits":
        return load_digits_splits()
    height, width = config.image_size or _FOLDER_IMAGE_SIZE
    return load_image_folder(config.root or "", (height, width), config.val_fraction)
