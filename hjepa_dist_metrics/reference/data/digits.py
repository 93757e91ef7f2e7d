"""Scikit-learn's 1,797 handwritten digits, the embedded default: no download."""

from __future__ import annotations

import numpy as np
import torch

from hjepa_dist_metrics.errors import MissingExtraError
from hjepa_dist_metrics.reference.data.images import SPLIT_SEED, ImageSplits, TensorImages

NUM_TRAIN = 1400
_MAX_INK, _MEAN, _STD = 16.0, 0.305, 0.376
"""Values are 0 to 16; mean and standard deviation of the training images after division by 16."""


def load_digits_splits() -> ImageSplits:
    """Return 1,400 training and 397 validation images, float32 [1, 8, 8], standardised, always the same."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "train", "The digits data set") from error
    bunch = load_digits()
    images = (torch.from_numpy(bunch.images).float().unsqueeze(1) / _MAX_INK - _MEAN) / _STD
    labels = torch.from_numpy(bunch.target).long()
    order = torch.from_numpy(np.random.default_rng(SPLIT_SEED).permutation(len(images)))
    train, val = (TensorImages(images[part], labels[part]) for part in (order[:NUM_TRAIN], order[NUM_TRAIN:]))
    return ImageSplits(train, val, (8, 8), 1, tuple(str(digit) for digit in range(10)))
