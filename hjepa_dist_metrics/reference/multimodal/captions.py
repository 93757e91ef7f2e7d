"""Captions of digits: several ways to say the same, and their words as numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hjepa_dist_metrics.reference.data.randomness import indexed_uniform

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "a handwritten {word}",
    "the digit {numeral}",
    "{word} written by hand",
    "an image of the number {numeral}",
    "someone drew a {word} here",
    "this is the number {word}",
    "a small grey picture of a {numeral}",
    "{numeral}",
)
PADDING = 0


def captions(labels: Tensor, indices: Tensor, seed: int) -> list[str]:
    """Return a caption for each label; which template is drawn by the sample's global index."""
    uniform = indexed_uniform(indices, 1, seed=seed, epoch=0, stream="caption")[:, 0]
    chosen = np.floor(uniform * len(TEMPLATES)).astype(int)
    return [
        TEMPLATES[template].format(word=WORDS[label], numeral=label)
        for template, label in zip(chosen, labels.tolist(), strict=True)
    ]


def vocabulary() -> list[str]:
    """Return every word of every caption, in alphabetical order."""
    said = {
        word
        for template in TEMPLATES
        for label, name in enumerate(WORDS)
        for word in template.format(word=name, numeral=label).split()
    }
    return sorted(said)


def tokenize(texts: Sequence[str]) -> Tensor:
    """Return the words' numbers, int64 [N, longest caption], from 1 on; 0 is padding."""
    number = {word: place + 1 for place, word in enumerate(vocabulary())}
    length = max(len(template.split()) for template in TEMPLATES)
    rows = [[number[word] for word in text.split()] for text in texts]
    return torch.tensor([row + [PADDING] * (length - len(row)) for row in rows], dtype=torch.int64)
