"""Findings on representations: several witnesses must agree, and a run is compared with its own best."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from hjepa_dist_metrics.monitor.health.detector import Detect, Detector, matching
from hjepa_dist_metrics.monitor.health.detectors.losses import TOTALS, loss_drop
from hjepa_dist_metrics.monitor.health.detectors.streams import WIDTHS, Stream, has_stopped, streams
from hjepa_dist_metrics.monitor.health.findings import Evidence
from hjepa_dist_metrics.monitor.health.series import History, Series

_ALIKE, _NARROW = 0.99, 0.1  # mean cosine and relative spread of rows that are nearly one
_FALLEN_ALIKE, _FALLEN_SPREAD = 0.9, 0.25  # the same after a fall from the run's own best spread
_STUCK_LOGS = 6  # logs after which a bad start is no start any more
_STUCK_STEPS = 50
_BETTER = 1.5  # times the start, for a bad start that is being left
_INDEPENDENT = 0.2  # of the variance between images that independent tokens would give
_RANK_KEPT = 0.4  # of the run's own best rank
_PARTIAL_KEPT = 0.6
_RANK_SHARE = 0.05  # of min(D, n - 1), from the start on
_PROBE_KEPT = 0.97  # of the best accuracy of a probe
_DUPLICATES = 0.9
_DEAD = 0.25  # of the features
_NORM = 30.0  # times the norm at the start, and its inverse
_CONSTANT, _VARIED = 0.99, 0.9  # mean cosine of predictions and of what they predict
_PROBES = r"val/.*accuracy|probe/.*accuracy"
_NORMS = (
    r"hierarchy/level\d+_feat_norm|train/(?:context|target)_norm|collapse/(?:.+_)?rms_norm|embeddings/.+/norm"
)
_PREDICTIONS = r"collapse/prediction\d+_mean_similarity"


def _each(judge: Callable[[Stream], list[Evidence] | None]) -> Detect:
    """Return a detector's function that judges every stream of the newest log."""

    def detect(history: History) -> list[Evidence] | None:
        judged = [found for stream in streams(history) if (found := judge(stream)) is not None]
        return [evidence for found in judged for evidence in found] if judged else None

    return detect


def point_collapse(stream: Stream) -> list[Evidence] | None:
    """Find rows that all point the same way, which have fallen there or have not left it since the start."""
    similarity, spread = stream.series("mean_similarity"), stream.series("mean_std_per_dim")
    if similarity is None or spread is None or stream.is_small:
        return None
    width, best = stream.relative_spread(spread), _best(spread)
    alike = similarity.median(1)
    narrow = alike > _ALIKE and width < _NARROW and (_is_stuck(spread) or spread.newest < 0.5 * best)
    fallen = alike > _FALLEN_ALIKE and spread.newest < _FALLEN_SPREAD * best and has_stopped(spread)
    if not (narrow or fallen):
        return []
    reason = f"the spread is {spread.newest / best:.2g} of its best and the mean cosine {alike:.4g}"
    tag = stream.prefix + "mean_std_per_dim"
    return [Evidence(tag, spread.newest, reason, limit=_FALLEN_SPREAD * best, best=best)]


def image_collapse(stream: Stream) -> list[Evidence] | None:
    """Find images with the same tokens: they differ by less than independent tokens would make them."""
    ratio = stream.series("between_within_ratio")
    images = stream.value("pooled_num_samples")
    if ratio is None or not images >= 4 or stream.is_small:
        return None
    tokens = stream.rows / images
    limit = _INDEPENDENT / tokens
    if tokens < 2 or ratio.newest >= limit or not (_is_stuck(ratio) or ratio.newest < 0.3 * _best(ratio)):
        return []
    reason = f"images of {tokens:.0f} tokens differ by less than {limit:.2g} of the tokens' own variance"
    tag = stream.prefix + "between_within_ratio"
    return [Evidence(tag, ratio.newest, reason, limit=limit, best=_best(ratio))]


def dimensional_collapse(stream: Stream) -> list[Evidence] | None:
    """Find a rank far below the run's own best that does not come back, or next to none since the start."""
    if stream.is_small:
        return None
    found = [*_rank(stream, "effective_rank"), *_rank(stream, "pooled_effective_rank")]
    return [] if found and _probe_holds(stream.history) else found


def _rank(stream: Stream, name: str) -> Iterator[Evidence]:
    rank = stream.series(name)
    if rank is None:
        return
    best, now = _best(rank), rank.median(2)
    attainable = min(stream.width, stream.rows - 1)
    if now < _RANK_KEPT * best and rank.count > 3 and has_stopped(rank):
        reason = f"{now / best:.2g} of its best in this run, {best:.3g}, of at most {attainable:.0f}"
        yield Evidence(stream.prefix + name, rank.newest, reason, limit=_RANK_KEPT * best, best=best)
    elif name == "effective_rank" and now < _RANK_SHARE * attainable and _is_stuck(rank):
        reason = f"{now:.3g} of {attainable:.0f} dimensions, and no more since the start"
        yield Evidence(stream.prefix + name, rank.newest, reason, limit=_RANK_SHARE * attainable, best=best)


def partial_collapse(history: History) -> list[Evidence] | None:
    """Find a rank that fell while the loss dropped at once."""
    drop = loss_drop(history)
    if not drop:
        return None if drop is None else []
    ranks = [
        (stream.prefix + "effective_rank", rank)
        for stream in streams(history)
        if (rank := stream.series("effective_rank")) is not None and not stream.is_small
    ]
    fallen = [
        Evidence(tag, rank.newest, f"{_best(rank):.3g} at best, before the loss dropped", best=_best(rank))
        for tag, rank in ranks
        if rank.median(2) < _PARTIAL_KEPT * _best(rank)
    ]
    return [*fallen, *drop] if fallen else []


def cluster_collapse(stream: Stream) -> list[Evidence] | None:
    """Find rows that nearly all have a twin in another image."""
    share = stream.series("duplicate_share")
    if share is None or stream.is_small:
        return None
    lowest = share.lowest[1] if share.lowest else share.start_median()
    if share.median(2) < _DUPLICATES or (lowest > 0.5 * _DUPLICATES and not _is_stuck(share, -1.0)):
        return []
    if _probe_holds(stream.history):
        return []
    reason = f"{100 * share.newest:.0f} % of the rows have a twin; {100 * lowest:.0f} % at best"
    return [Evidence(stream.prefix + "duplicate_share", share.newest, reason, limit=_DUPLICATES, best=lowest)]


def dead_features(stream: Stream) -> list[Evidence] | None:
    """Find features that are constant, more of them than at the start."""
    dead = stream.series("dead_features")
    if dead is None:
        return None
    limit = _DEAD * stream.width
    start = dead.start[0][1]
    if dead.median(2) < limit or (dead.median(2) < 1.5 * start and not _is_stuck(dead, -1.0)):
        return []
    reason = f"of {stream.width:.0f} features are constant; {start:.0f} at the start"
    return [Evidence(stream.prefix + "dead_features", dead.newest, reason, limit=limit, best=start)]


def norm_explosion(history: History) -> list[Evidence] | None:
    """Find a norm of features that has grown far beyond its start and still grows."""
    return _norms(history, 1.0, "and it still grows")


def norm_vanishing(history: History) -> list[Evidence] | None:
    """Find a norm of features that has fallen far below its start."""
    return _norms(history, -1.0, "and it does not come back")


def _norms(history: History, sign: float, words: str) -> list[Evidence] | None:
    norms = [(tag, series) for tag, series in matching(history, _NORMS) if tag in history.fresh]
    found = []
    for tag, series in norms:
        start, now = series.start_median(), series.median(2)
        limit = start * _NORM**sign
        if series.count > 3 and start > 0 and sign * (now - limit) > 0 and sign * _trend(series) >= 0:
            reason = f"{now / start:.2g} times the {start:.3g} of the start, {words}"
            found.append(Evidence(tag, series.newest, reason, limit=limit))
    return found if norms else None


def _trend(series: Series) -> float:
    """Return the change of a norm over its last logs, relative to its size."""
    values = series.last(4)
    return (values[-1] - values[0]) / max(abs(values[0]), math.ulp(0.0)) + 0.0


def constant_predictions(history: History) -> list[Evidence] | None:
    """Find predictions that are all alike while the features that they predict are not."""
    found, judged = [], False
    targets = history.value("collapse/mean_similarity")
    for tag, series in matching(history, _PREDICTIONS):
        if tag not in history.fresh or not math.isfinite(targets):
            continue
        judged = True
        if series.median(2) > _CONSTANT and targets < _VARIED and _is_stuck(series, -1.0):
            reason = f"predictions are all alike, their targets are not (mean cosine {targets:.3g})"
            found.append(Evidence(tag, series.newest, reason, limit=_CONSTANT))
    return found if judged else None


def _best(series: Series) -> float:
    """Return the highest number so far, of medians where there are enough."""
    return max(series.start_median(), series.highest[1] if series.highest else -math.inf)


def _is_stuck(series: Series, sign: float = 1.0) -> bool:
    """Return whether a number has had time to leave its start and has not done so."""
    if series.count < _STUCK_LOGS or series.steps < _STUCK_STEPS:
        return False
    start, now = series.start[0][1], series.median(3)
    return now <= _BETTER * start if sign > 0 else now >= start / _BETTER


def _probe_holds(history: History) -> bool:
    """Return whether a probe says that the features are as good as ever."""
    probes = [series for _, series in matching(history, _PROBES) if series.count > 1]
    return bool(probes) and all(
        series.newest >= _PROBE_KEPT * max(value for _, value in (*series.outline, *series.recent))
        and history.step - series.recent[-1][0] <= max(series.steps, 1)
        for series in probes
    )


_STREAM = WIDTHS.removesuffix("num_features")


def _reads(*names: str) -> tuple[str, ...]:
    return (f"{_STREAM}(?:num_samples|pooled_num_samples|{'|'.join(names)})",)


DETECTORS = (
    Detector(
        "point_collapse", _each(point_collapse), (WIDTHS,), _reads("mean_similarity", "mean_std_per_dim")
    ),
    Detector("image_collapse", _each(image_collapse), (WIDTHS,), _reads("between_within_ratio")),
    Detector("partial_collapse", partial_collapse, (WIDTHS,), (*_reads("effective_rank"), *TOTALS)),
    Detector("cluster_collapse", _each(cluster_collapse), (WIDTHS,), (*_reads("duplicate_share"), _PROBES)),
    Detector(
        "dimensional_collapse",
        _each(dimensional_collapse),
        (WIDTHS,),
        (*_reads("effective_rank", "pooled_effective_rank"), _PROBES),
    ),
    Detector("dead_features", _each(dead_features), (WIDTHS,), _reads("dead_features")),
    Detector("norm_explosion", norm_explosion, (_NORMS,)),
    Detector("norm_vanishing", norm_vanishing, (_NORMS,)),
    Detector("constant_predictions", constant_predictions, (_PREDICTIONS,), ("collapse/mean_similarity",)),
)
