"""Points with labels and pictures, for TensorBoard's projector."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.logging.images import to_pixels
from hjepa_dist_metrics.values import Embedding


def check_points(name: str, vectors: Any, labels: Sequence[str], images: Any) -> None:
    """Raise ConfigError, by shape alone, unless there are points [N, D] and as many labels and images."""
    shape = list(np.shape(vectors))
    if len(shape) != 2 or not shape[0]:
        raise ConfigError(f"embedding {name!r} needs vectors [N, D] with N > 0, got shape {shape}")
    pictures = shape[0] if images is None else len(images)
    if (labels and len(labels) != shape[0]) or pictures != shape[0]:
        raise ConfigError(
            f"embedding {name!r} has {shape[0]} points, {len(labels)} labels and {pictures} images; "
            "each point takes one"
        )


def to_labels(labels: Iterable[Any] | None) -> tuple[str, ...]:
    """Return labels as text; a tensor's elements are taken as Python numbers."""
    if labels is None:
        return ()
    listed = labels.tolist() if isinstance(labels, (Tensor, np.ndarray)) else labels
    if isinstance(listed, str) or not isinstance(listed, Iterable):
        raise ConfigError(f"labels must be a sequence, one a point, got {labels!r}; a step goes in as step=")
    return tuple(str(label) for label in listed)


def to_embedding(vectors: Any, labels: tuple[str, ...], images: Sequence[Any]) -> Embedding:
    """Return the embedding of host data; `images` of one size, none or one a point."""
    points = vectors.float().numpy() if isinstance(vectors, Tensor) else np.asarray(vectors, np.float32)
    if not len(images):
        return Embedding(points, labels)
    sprites = np.stack([np.broadcast_to(p, (*p.shape[:2], 3)) for p in map(to_pixels, images)])
    return Embedding(points, labels, sprites)
