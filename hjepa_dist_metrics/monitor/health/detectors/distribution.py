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
_GROWING_LOGS, _GROWING_STEPS = 10, 50
_GROWTH, _LEAST_GROWTH = 0.1, 0.05  # of the memory before these logs; GB
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
    """Find memory that grows from log to log, over the newest logs or slowly over the whole run."""
    found, judged = [], False
    for tag, series in history.matching(_MEMORY):
        if series.count < _GROWING_LOGS + 2 or series.steps < _GROWING_STEPS:
            continue
        judged = True
        for points in (list(series.recent)[-_GROWING_LOGS:], series.outline[2:]):
            values = [value for _, value in points]
            if _keeps_growing(values):
                reason = f"it was {values[0]:.3g} GB at step {points[0][0]}, and grows at every log"
                found.append(Evidence(tag, series.newest, reason, limit=values[0] * (1 + _GROWTH)))
                break
    return found if judged else None


def _keeps_growing(values: list[float]) -> bool:
    """Return whether memory grows, and not less in the second half than before: what settles does not."""
    if len(values) < _GROWING_LOGS or rank_correlation(values) <= _RISING:
        return False
    half = len(values) // 2
    earlier, later = values[half] - values[0], values[-1] - values[half]
    return later > 0.5 * earlier and earlier + later > max(_GROWTH * values[0], _LEAST_GROWTH)


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
