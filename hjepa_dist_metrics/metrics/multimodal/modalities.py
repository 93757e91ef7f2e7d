"""What modalities are to a metric: a few names, and one embedding of each for every sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError


def modality_names(names: Sequence[str], least: int = 1) -> tuple[str, ...]:
    """Return the names; ConfigError unless there are `least` or more, each its own and good for a tag."""
    listed = (names,) if isinstance(names, str) else tuple(names)
    ok = all(isinstance(name, str) and name.strip() == name != "" and "/" not in name for name in listed)
    if isinstance(names, str) or not ok or len(set(listed)) != len(listed) or len(listed) < least:
        raise ConfigError(
            f"expected the names of {least} or more modalities, each once and without '/', got {names!r}"
        )
    return listed


def matched_rows(embeddings: Mapping[str, Tensor], names: Sequence[str], same_width: bool) -> list[Tensor]:
    """Return the embeddings [B, D] in the order of the names.

    ConfigError where a modality is missing or unknown, is not [B, D], or has another B than the others;
    with `same_width` also where it has another D.
    """
    if not isinstance(embeddings, Mapping) or set(embeddings) != set(names):
        got = sorted(map(str, embeddings)) if isinstance(embeddings, Mapping) else type(embeddings).__name__
        raise ConfigError(f"expected embeddings [B, D] of the modalities {list(names)}, got {got}")
    rows = [embeddings[name] for name in names]
    # whole numbers, which a tracer's sizes are not
    shapes = {name: [int(size) for size in tensor.shape] for name, tensor in zip(names, rows, strict=True)}
    if any(len(shape) != 2 or shape[1] < 1 for shape in shapes.values()):
        raise ConfigError(f"expected one embedding [B, D] a modality, got the shapes {shapes}")
    if len({shape[0] for shape in shapes.values()}) > 1:
        raise ConfigError(f"modalities of one batch need as many rows as each other, got the shapes {shapes}")
    if same_width and len({shape[1] for shape in shapes.values()}) > 1:
        raise ConfigError(f"modalities are compared in one space of one width, got the shapes {shapes}")
    return rows
