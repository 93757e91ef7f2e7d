"""The language model of sums as the training command knows it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from hjepa_dist_metrics.reference.language.config import DataConfig, ModelConfig
from hjepa_dist_metrics.reference.language.sums import ALPHABET
from hjepa_dist_metrics.reference.language.workload import LanguageWorkload
from hjepa_dist_metrics.reference.trainer import Outcome
from hjepa_dist_metrics.reference.workloads import Row, WorkloadKind


def rows(outcome: Outcome, model: ModelConfig) -> Iterator[Row]:
    """Yield how predictable the next letter has become, and how many dimensions the features fill."""
    first, latest = outcome.first, outcome.latest
    chance = f"{math.log(len(ALPHABET)):.3f} at chance"
    yield "loss/total", f"{first['loss/total']:.3f}", f"{latest['loss/total']:.3f}", chance
    if "collapse/effective_rank" in latest:
        rank = "collapse/effective_rank"
        yield "effective rank", f"{first[rank]:.1f}", f"{latest[rank]:.1f}", f"of {model.width}"


KIND = WorkloadKind(ModelConfig, DataConfig, LanguageWorkload, rows)
