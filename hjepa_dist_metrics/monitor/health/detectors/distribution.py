"""Findings on ranks, speed and memory."""

from __future__ import annotations

import math
from collections.abc import Callable

from hjepa_dist_metrics.monitor.health.detector import Detector
from hjepa_dist_metrics.monitor.health.findings import Evidence
from hjepa_dist_metrics.monitor.health.series import History, median, rank_correlation

_SPEED = "performance/samples_per_second"
_SLOW, _SLOWEST = "performance/slow_ranks", "performance/slowest_rank"
_SCORE, _WAIT = "performance/straggler_score", "performance/collective_wait_time_ms"
_MEMORY = r"system/ram_gb|performance/gpu_memory_allocated_gb"

_SLOWER, _FALLING = 0.55, 0.7  # of the speed at the start; of all pairs of logs, less those that rise
_SLOW_LOGS = 8
_GROWTH, _LEAST_GROWTH = 0.15, 0.02  # of the memory at the start; GB
_RISING = 0.85


def _differing(tag: str, what: str, at_once: bool) -> Callable[[History], list[Evidence]]:
    """Return a detector's function: ranks whose checksum differs."""

    def detect(history: History) -> list[Evidence]:
        ranks, rank = history.value(tag, 0.0), history.value(f"{tag}_rank")
        if not ranks > 0:
            return []
        first = f", the first is rank {rank:.0f}" if math.isfinite(rank) else ""
        reason = f"ranks have other {what} than the rest{first}"
        return [Evidence(tag, ranks, reason, limit=0.0, at_once=at_once)]

    return detect


def straggler(history: History) -> list[Evidence] | None:
    """Find ranks for which the others wait, the same one being the slowest at one log after the other."""
    slow, slowest = history.get(_SLOW), history.get(_SLOWEST)
    if slow is None or slowest is None or slow.count < 2:
        return None
    if min(slow.last(2)) <= 0 or len(set(slowest.last(2))) > 1:
        return []
    score, wait = history.value(_SCORE), history.value(_WAIT)
    lost = f", the others wait {wait:.0f} ms a step" if math.isfinite(wait) else ""
    reason = f"rank {slowest.newest:.0f} has {100 * score:.0f} % of the others' speed{lost}"
    return [Evidence(_SLOW, slow.newest, reason, limit=0.0)]


def throughput_decay(history: History) -> list[Evidence] | None:
    """Find a speed that has fallen from log to log over the whole run."""
    series = history.get(_SPEED)
    if series is None or series.count < 2 * _SLOW_LOGS:
        return None
    speeds = [value for _, value in series.outline]
    start, now = median(speeds[: len(speeds) // 3]), series.median(5)
    late = speeds[len(speeds) // 2 :]  # a machine that got busy at once is no decay
    if now >= _SLOWER * start or max(rank_correlation(speeds), rank_correlation(late)) > -_FALLING:
        return []
    reason = f"it was {start:.4g} in the first third of the run, and falls from log to log"
    return [Evidence(_SPEED, series.newest, reason, limit=_SLOWER * start, best=start)]


def memory_growth(history: History) -> list[Evidence] | None:
    """Find memory that has grown from log to log over the whole run."""
    found, judged = [], False
    for tag, series in history.matching(_MEMORY):
        values = [value for _, value in series.outline][2:]
        if len(values) < 12:
            continue
        judged = True
        grown = series.newest - values[0]
        still = rank_correlation(values) > _RISING and rank_correlation(values[-6:]) > 0.5
        if still and grown > max(_GROWTH * values[0], _LEAST_GROWTH):
            reason = f"it was {values[0]:.3g} GB at step {series.outline[2][0]}, and grows at every log"
            found.append(Evidence(tag, series.newest, reason, limit=values[0] * (1 + _GROWTH)))
    return found if judged else None


_PARAMETERS, _BUFFERS = "parameters/replica_disagreement", "parameters/buffer_disagreement"
DETECTORS = (
    Detector(
        "replica_drift", _differing(_PARAMETERS, "parameters", True), (_PARAMETERS,), (f"{_PARAMETERS}_rank",)
    ),
    Detector("stale_buffers", _differing(_BUFFERS, "buffers", False), (_BUFFERS,), (f"{_BUFFERS}_rank",)),
    Detector("straggler", straggler, (_SLOW,), (_SLOWEST, _SCORE, _WAIT)),
    Detector("throughput_decay", throughput_decay, (_SPEED,)),
    Detector("memory_growth", memory_growth, (_MEMORY,)),
)
