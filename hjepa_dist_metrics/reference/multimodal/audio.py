"""The sound of a digit's key: two tones at once, as every telephone dials them (ITU-T Q.23), with noise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hjepa_dist_metrics.reference.data.randomness import indexed_uniform

ROWS, COLUMNS = (697.0, 770.0, 852.0, 941.0), (1209.0, 1336.0, 1477.0)
SAMPLE_RATE = 8000
SAMPLES = 512
_KEYS = ("147*", "2580", "369#")
_TWIST_DB = 4.0  # how far one tone may be louder than the other


def frequencies(digit: int) -> tuple[float, float]:
    """Return the row's and the column's frequency of a digit's key, in Hz."""
    column = next(place for place, keys in enumerate(_KEYS) if str(digit) in keys)
    return ROWS[_KEYS[column].index(str(digit))], COLUMNS[column]


def dial(
    labels: Tensor, indices: Tensor, *, noise: tuple[float, float], level_db: float, seed: int, epoch: int
) -> Tensor:
    """Return the signal of each label, float32 [B, 512] at 8 kHz.

    Phases, level, the tones' balance, the amount of noise and the noise itself are drawn by the sample's
    global index and the epoch: the same whichever rank and batch hold the sample.
    """
    draw = indexed_uniform(indices, 5 + SAMPLES, seed=seed, epoch=epoch, stream="dial")
    pair = np.array([frequencies(digit) for digit in range(10)])[labels.numpy()]
    time = np.arange(SAMPLES) / SAMPLE_RATE
    phases = 2 * np.pi * (pair[:, :, None] * time + draw[:, :2, None])
    balance = 10 ** ((draw[:, 2] - 0.5) * _TWIST_DB / 20)
    tones = np.sin(phases[:, 0]) * balance[:, None] + np.sin(phases[:, 1]) / balance[:, None]
    low, high = noise
    amount = low + draw[:, 3] * (high - low)
    level = 10 ** (-draw[:, 4] * level_db / 20)
    signal = level[:, None] * (tones + amount[:, None] * _normal(draw[:, 5:]))
    return torch.from_numpy(signal.astype(np.float32))


def _normal(
    uniform: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return standard normal numbers from as many uniform ones (Box and Muller 1958)."""
    half = uniform.shape[1] // 2
    radius, angle = np.sqrt(-2 * np.log1p(-uniform[:, :half])), 2 * np.pi * uniform[:, half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
