"""What a rank of a declared layout adds to the job's numbers: what several ranks see counts once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hjepa_dist_metrics.parallel import ParallelLayout

# Arguments of a step that describe samples; tensor-parallel ranks have the same ones.
_OF_SAMPLES = frozenset(
    {
        "losses",
        "features",
        "labels",
        "valid",
        "ids",
        "context_features",
        "context_valid",
        "predictions",
        "targets",
        "prediction_valid",
        "mask",
        "images",
        "blocks",
        "router_logits",
        "expert_choices",
    }
)


def own_share(given: Mapping[str, Any], layout: ParallelLayout | None) -> Mapping[str, Any]:
    """Return the arguments of a step that this rank adds; losses of parts of sequences weigh by tokens."""
    if layout is None:
        return given
    kept = given if layout.adds_rows else {k: v for k, v in given.items() if k not in _OF_SAMPLES}
    if layout.splits_sequences and kept.get("count") is None and kept.get("tokens"):
        return {**kept, "count": kept["tokens"]}
    return kept


def counted(samples: Any, tokens: Any, layout: ParallelLayout | None) -> tuple[Any, Any]:
    """Return the samples and tokens of this rank that no other rank counts."""
    if layout is None:
        return samples, tokens
    return samples if layout.adds_samples else 0, tokens if layout.adds_tokens else 0
