"""A tag's healthy range in one run, from the sizes that the run has logged."""

from __future__ import annotations

from collections.abc import Mapping

from hjepa_dist_metrics.catalog.entry import Limits
from hjepa_dist_metrics.catalog.registry import find

# Groups whose limits are the same for every width and number of rows.
_OF_ANY_SIZE = ("performance", "Eval/Frame", "Eval/Gap")


def limits_of(tag: str, latest: Mapping[str, float]) -> Limits | None:
    """Return a tag's limits for the width and the number of rows in a run's latest numbers.

    None where the catalog has no limits, or the run has not logged its sizes.
    """
    entry = find(tag)
    if entry is None or entry.limits is None:
        return None if entry is None else entry.bounds
    group, _, name = tag.rpartition("/")
    if group in _OF_ANY_SIZE:
        return entry.limits(0, 0)
    if group != "collapse":
        return None
    pooled = "pooled_" if "pooled_" in name else ""
    stream = entry.placeholder_values(tag).get("name", "").removesuffix("_pooled")
    prefix = f"collapse/{stream}_" if stream else "collapse/"
    dim, count = latest.get(f"{prefix}num_features"), latest.get(f"{prefix}{pooled}num_samples")
    return entry.limits(int(dim), int(count)) if dim and count else None


def healthy_range(limits: Limits) -> str:
    """Return "above 16" or "below 0.5"; "0" where any other number is a finding."""
    if limits.warn == 0 and not limits.low_is_bad:
        return "0"
    return f"{'above' if limits.low_is_bad else 'below'} {limits.warn:.3g}"
