"""Digits to see, to read and to hear."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hjepa_dist_metrics.reference.data import load_digits_splits, random_shift
from hjepa_dist_metrics.reference.multimodal.audio import dial
from hjepa_dist_metrics.reference.multimodal.captions import captions, tokenize, vocabulary
from hjepa_dist_metrics.reference.multimodal.config import DataConfig
from hjepa_dist_metrics.reference.multimodal.encoders import AudioEncoder, ImageEncoder, TextEncoder
from hjepa_dist_metrics.reference.multimodal.modality import Modality, PairedData

VALIDATION_EPOCH = -1
_ENLARGED = 4  # a digit of 8 x 8 pixels is hard to see


def digits(config: DataConfig, seed: int) -> PairedData:
    """Return scikit-learn's digits as images, captions and dialled keys; 1,400 to train on, 397 held out."""
    splits = load_digits_splits()
    images = torch.stack([part[i]["image"] for part in (splits.train, splits.val) for i in range(len(part))])
    labels = torch.cat([splits.train.labels, splits.val.labels])
    texts = captions(labels, torch.arange(len(labels)), seed)
    tokens = tokenize(texts)

    def read(indices: Tensor, epoch: int) -> Tensor:
        return tokens[indices]

    def look(indices: Tensor, epoch: int) -> Tensor:
        shift = 0 if epoch == VALIDATION_EPOCH else config.max_shift
        return random_shift(images[indices], indices, max_shift=shift, seed=seed, epoch=epoch)

    def listen(indices: Tensor, epoch: int) -> Tensor:
        noise, level = config.audio_noise, config.audio_level_db
        return dial(labels[indices], indices, noise=noise, level_db=level, seed=seed, epoch=epoch)

    words, length = len(vocabulary()), tokens.shape[1]
    modalities = (
        Modality("text", lambda dim: TextEncoder(dim, words, length), read),
        Modality("image", ImageEncoder, look),
        Modality("audio", AudioEncoder, listen),
    )
    return PairedData(modalities, len(splits.train), len(splits.val), labels, tuple(texts), _pictures(images))


def _pictures(images: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return images [N, 1, H, W] as uint8 [N, 4 H, 4 W, 3], black on white."""
    low, high = images.amin(), images.amax()
    grey = (255 * (1 - (images[:, 0] - low) / (high - low))).round().to(torch.uint8).numpy()
    large = grey.repeat(_ENLARGED, axis=1).repeat(_ENLARGED, axis=2)
    return np.repeat(large[..., None], 3, axis=-1)
