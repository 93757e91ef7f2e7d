"""The effective rank of rows of features, in NumPy."""

import math

import numpy as np


def effective_rank(rows: np.ndarray) -> float:
    """Return exp(entropy) of the spectrum of the unit rows' covariance (Roy and Vetterli 2007)."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    spectrum = np.linalg.eigvalsh(np.cov(unit.T))
    p = np.clip(spectrum, 1e-300, None) / spectrum.sum()
    return math.exp(-(p * np.log(p)).sum())
