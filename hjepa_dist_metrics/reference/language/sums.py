"""The text: sums of two numbers, "07+35=042;", whose result has to be worked out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hjepa_dist_metrics.reference.data.randomness import indexed_uniform

ALPHABET = "0123456789+=;"
LENGTH = 10


def sums(indices: Tensor, seed: int) -> Tensor:
    """Return the sums of these numbers as letters' numbers, int64 [N, 10]."""
    pair = np.floor(100 * indexed_uniform(indices, 2, seed=seed, epoch=0, stream="sums")).astype(int)
    texts = [f"{a:02d}+{b:02d}={a + b:03d};" for a, b in pair.tolist()]
    rows = [[ALPHABET.index(letter) for letter in text] for text in texts]
    return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), LENGTH)
