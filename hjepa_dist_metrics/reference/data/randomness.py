"""Random numbers that depend on what is drawn for, never on the rank or the batch that draws.

A number is a pure function of (seed, epoch, sample index, stream, draw): splitmix64 over a counter (Steele,
Lea, Flood 2014). So a sample gets the same mask and the same augmentation wherever it is processed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return splitmix64's output for state `x`; uint64 arrays wrap silently, as they should."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _MIX1
    x = (x ^ (x >> np.uint64(27))) * _MIX2
    mixed: npt.NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


def indexed_uniform(
    indices: torch.Tensor, draws: int, *, seed: int, epoch: int, stream: str
) -> npt.NDArray[np.float64]:
    """Return uniform numbers in [0, 1), float64 [len(indices), draws], drawn by global sample index.

    `stream` names the purpose, so that masks and augmentations of one sample are independent.
    """
    key = np.frombuffer(stream.encode().ljust(8, b"\0")[:8], dtype="<u8").astype(np.uint64)
    for part in (seed, epoch):
        key = _mix(key ^ np.array([part % 2**64], dtype=np.uint64))
    samples = _mix(key ^ indices.detach().cpu().numpy().astype(np.int64).view(np.uint64))
    bits = _mix(samples[:, None] ^ _mix(np.arange(draws, dtype=np.uint64))[None, :])
    uniform: npt.NDArray[np.float64] = (bits >> np.uint64(11)) * 2.0**-53
    return uniform
