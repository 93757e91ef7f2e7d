"""The reference H-JEPA as the training command knows it."""

from __future__ import annotations

from collections.abc import Iterator

from hjepa_dist_metrics import catalog
from hjepa_dist_metrics.reference.hjepa.config import DataConfig, ModelConfig
from hjepa_dist_metrics.reference.hjepa.workload import HJEPAWorkload
from hjepa_dist_metrics.reference.trainer import Outcome
from hjepa_dist_metrics.reference.workloads import Row, WorkloadKind


def rows(outcome: Outcome, model: ModelConfig) -> Iterator[Row]:
    """Yield losses by level, the effective rank against its baseline, and the probe's accuracy."""
    first, latest = outcome.first, outcome.latest
    for tag in sorted(latest):
        if tag == "loss/total" or (tag.startswith("loss/h") and tag[6:].isdigit()):
            yield tag, f"{first[tag]:.4f}", f"{latest[tag]:.4f}", ""
    if "collapse/effective_rank" in latest:
        dim, count = model.embed_dim, int(latest["collapse/num_samples"])
        start, end = (f"{values['collapse/effective_rank']:.1f}" for values in (first, latest))
        limit = latest.get("health/effective_rank_limit")
        below = "" if limit is None else f"limit {limit:.1f} "
        yield "effective rank", start, end, f"{below}of {catalog.best_rank(dim, count):.0f}"
    if "val/knn_accuracy" in latest:
        start, end = (f"{100 * values['val/knn_accuracy']:.1f} %" for values in (first, latest))
        yield "kNN accuracy", start, end, f"{start} untrained"


KIND = WorkloadKind(ModelConfig, DataConfig, HJEPAWorkload, rows)
