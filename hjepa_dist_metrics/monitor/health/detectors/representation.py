"""Findings on representations: several witnesses must agree, and a run is compared with its own best."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from hjepa_dist_metrics.monitor.health.detector import TOTAL_LOSSES, Detect, Detector
from hjepa_dist_metrics.monitor.health.detectors.losses import loss_drop
from hjepa_dist_metrics.monitor.health.detectors.streams import WIDTHS, Stream, has_stopped, streams
from hjepa_dist_metrics.monitor.health.findings import Evidence
from hjepa_dist_metrics.monitor.health.series import HELD, History, Series, rank_correlation

_LEAST = 4  # logs
_FEW, _EARLY = 6, 50  # logs and steps before which there is no such level: networks leave their start
_ALIKE, _ONE = 0.5, 0.995  # mean cosine of two samples: from which on a rise counts, and next to a point
_APART_KEPT, _APART_LOST = 0.45, 0.3  # of 1 - the mean cosine, while it falls on and in any case
_APART_GONE, _POINT = 0.1, 0.99  # of it, and the mean cosine: even an early run has collapsed there
_RANK_GONE = 0.2  # of the rank, the same
_STUCK_LOGS, _STUCK_STEPS = 10, 100  # after which a bad start is no start any more
_RISING = 0.4  # of all pairs of recent numbers, less those that fall
_BETTER = 1.5  # times the start, for a bad start that is being left
_INDEPENDENT = 0.2  # of the variance between images that independent tokens would give
_RESHAPED = 1.1  # times the rank about the mean, or its inverse
_RANK_KEPT = 0.6  # of the run's own level
_WITNESS_KEPT = 0.8  # of the level of another rank, which has to fall too
_WITNESS = {
    "effective_rank": "rankme_centered",
    "pooled_effective_rank": "rankme_centered",
    "rankme_centered": "effective_rank",
}
_RANK_OF_START = 0.12  # networks rightly lose most of the rank of their random features, but not all
_RANK_LEAST = 2.0  # dimensions, from the start on
_PROBE_KEPT = 0.97  # of the best accuracy of a probe
_CLUSTERED, _NEARER = 0.3, 0.5  # of the distance to the nearest that the rank implies, and of the run's own
_DEAD = 0.4  # of the features
_GROWN, _SHRINKING, _SHRUNK = 5.0, 0.33, 0.25  # times the size that the features had: while it goes on, after
_PEAK = 0.8  # of the largest size, which is the usual one before a fall
_CONSTANT, _MATCH, _MEETS = 0.95, 0.9, 0.8  # mean cosine of two predictions, and of predictions and targets
# Accuracies on held-out batches; where there are none, those on rows of the training.
_PROBES = (r"val/.*accuracy|probe/val_.+_top1", r"probe/.+_top1")
_NORMS = (
    r"hierarchy/level\d+_feat_norm|train/(?:context|target)_norm|embeddings/.+/norm"
    r"|collapse/(?!prediction|level)(?:.+_)?rms_norm"
)
_PREDICTIONS, _MATCHES = r"collapse/prediction\d+_mean_similarity", r"prediction/level\d+_cosine_sim_mean"
_OF_PAIRS = ("_mean_similarity", "_cosine_sim_mean")


def _each(judge: Callable[[Stream], list[Evidence] | None]) -> Detect:
    """Return a detector's function that judges every stream of the newest log."""

    def detect(history: History) -> list[Evidence] | None:
        judged = [found for stream in streams(history) if (found := judge(stream)) is not None]
        return [evidence for found in judged for evidence in found] if judged else None

    return detect


def point_collapse(stream: Stream) -> list[Evidence] | None:
    """Find rows that point ever more the same way, or have done so since the start."""
    if stream.value("is_constant") > 0:
        tag = stream.prefix + "is_constant"
        return [Evidence(tag, 1.0, "all samples have exactly the same features", limit=0.0)]
    similarity = stream.series("mean_similarity")
    if similarity is None or stream.is_small or similarity.count < _LEAST:
        return None
    now = similarity.median(2)
    if now <= _ALIKE:
        return []
    level = similarity.sustained(HELD, -1.0)
    if _is_early(similarity) and not now > max(_POINT, 1.0 - _APART_GONE * (1.0 - level)):
        return None
    limit = 1.0 - _APART_KEPT * (1.0 - level)
    trend = rank_correlation(similarity.last(8))
    rises = trend > _RISING or (trend > -_RISING and now > 1.0 - _APART_LOST * (1.0 - level))
    tag = stream.prefix + "mean_similarity"
    if now > limit and rises and (now > _POINT or _is_reshaped(stream)):
        reason = f"the mean cosine of two samples was {level:.3g} before, and rises towards 1"
        return [Evidence(tag, similarity.newest, reason, limit=limit, best=level)]
    if now > _ONE and _is_stuck(similarity, -1.0):
        reason = "the mean cosine of two samples stays next to 1; it has never been far from it"
        return [Evidence(tag, similarity.newest, reason, limit=_ONE, best=level)]
    return []


def _is_reshaped(stream: Stream) -> bool:
    """Return whether the rank about the mean has changed too: an offset alone leaves it."""
    rank = stream.series("rankme_centered")
    if rank is None:
        return True
    now = rank.median(2)
    return now < rank.sustained(HELD) / _RESHAPED or now > _RESHAPED * rank.sustained(HELD, -1.0)


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
    found = [evidence for name in _WITNESS for evidence in _rank(stream, name)]
    return [] if found and _probe_holds(stream.history) else found


def _rank(stream: Stream, name: str) -> Iterator[Evidence]:
    rank = stream.series(name)
    if rank is None or rank.count < _LEAST:
        return
    now = rank.median(2)
    if now >= max(_RANK_KEPT * _best(rank), _RANK_LEAST):
        return
    level = rank.sustained(HELD)
    if _is_early(rank) and not now < _RANK_GONE * level:
        return
    if now < _RANK_KEPT * level and has_stopped(rank) and _has_fallen(stream, _WITNESS[name]):
        reason = f"{now / level:.2g} of the {level:.3g} dimensions that the run had"
        yield Evidence(stream.prefix + name, rank.newest, reason, limit=_RANK_KEPT * level, best=level)
    elif now < _RANK_OF_START * rank.start[0][1] and has_stopped(rank) and not _is_early(rank):
        reason = f"{now / rank.start[0][1]:.2g} of the {rank.start[0][1]:.3g} dimensions of the start"
        limit = _RANK_OF_START * rank.start[0][1]
        yield Evidence(stream.prefix + name, rank.newest, reason, limit=limit, best=rank.start[0][1])
    elif name == "effective_rank" and now < _RANK_LEAST and _is_stuck(rank):
        reason = f"of {stream.width:.0f} dimensions, and no more since the start"
        yield Evidence(stream.prefix + name, rank.newest, reason, limit=_RANK_LEAST, best=level)


def rank_limits(history: History) -> dict[str, float]:
    """Return the limits of the ranks that the newest log holds, of the stream without a name.

    `health/{name}_limit`, below which `dimensional_collapse` asks for witnesses.
    """
    names = ("effective_rank", "pooled_effective_rank")
    ranks = {name: history.get(f"collapse/{name}") for name in names if f"collapse/{name}" in history.fresh}
    limits = {
        f"health/{name}_limit": _rank_limit(rank) for name, rank in ranks.items() if rank and rank.count
    }
    return {tag: limit for tag, limit in limits.items() if math.isfinite(limit)}


def _rank_limit(rank: Series) -> float:
    level = rank.sustained(HELD)
    if _is_early(rank):
        return _RANK_GONE * level
    return max(_RANK_KEPT * level, _RANK_OF_START * rank.start[0][1])


def _has_fallen(stream: Stream, name: str) -> bool:
    """Return whether another rank of the stream has fallen too, if by less; True where it is not logged."""
    witness = stream.series(name)
    return witness is None or witness.median(2) < _WITNESS_KEPT * witness.sustained(HELD)


def partial_collapse(history: History) -> list[Evidence] | None:
    """Find a rank that fell while the loss dropped at once."""
    drop = loss_drop(history)
    if not drop:
        return None if drop is None else []
    ranks = [
        (stream.prefix + "effective_rank", rank)
        for stream in streams(history)
        if (rank := stream.series("effective_rank")) is not None
        and not stream.is_small
        and _has_fallen(stream, "rankme_centered")
    ]
    fallen = [
        Evidence(tag, rank.newest, f"{level:.3g} before the loss dropped", _RANK_KEPT * level, level)
        for tag, rank in ranks
        if rank.median(2) < _RANK_KEPT * (level := rank.sustained(HELD))
    ]
    return [*fallen, *drop] if fallen else []


def cluster_collapse(stream: Stream) -> list[Evidence] | None:
    """Find rows that lie on a few points: far nearer to each other than rows of that rank would."""
    nearest, rank = stream.series("neighbor_distance"), stream.series("effective_rank")
    if nearest is None or rank is None or stream.is_small or _is_early(nearest):
        return None
    usual = stream.rows ** (-1.0 / max(rank.median(2) - 1.0, 1.0))  # unit rows have a dimension less
    level = nearest.sustained(HELD)
    limit = min(_CLUSTERED * usual, _NEARER * level)
    if not nearest.median(2) < limit or _probe_holds(stream.history):
        return []
    reason = f"of the usual distance; rows of rank {rank.newest:.0f} would have about {usual:.2g}"
    return [Evidence(stream.prefix + "neighbor_distance", nearest.newest, reason, limit=limit, best=level)]


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
    """Find features whose size has grown far beyond the run's level and still grows."""
    return _norms(history, 1.0, "times the {level:.3g} that it was, and it grows")


def norm_vanishing(history: History) -> list[Evidence] | None:
    """Find features whose size has fallen far below the run's level and does not come back."""
    return _norms(history, -1.0, "of the {level:.3g} that it was, and it does not come back")


def _factor(trend: float, sign: float) -> float:
    """Return the factor of the usual size at which a growth or a fall with such a trend is one."""
    goes_on = trend > _RISING
    if sign > 0:
        return _GROWN if goes_on else math.inf
    return _SHRINKING if goes_on else _SHRUNK if trend > -_RISING else 0.0


def _norms(history: History, sign: float, words: str) -> list[Evidence] | None:
    norms = [(tag, series) for tag, series in history.matching(_NORMS) if tag in history.fresh]
    judged = [(tag, series) for tag, series in norms if not _is_early(series)]
    found = []
    for tag, series in judged:
        level, now, trend = _usual_size(series, sign), series.median(2), rank_correlation(series.last(8))
        limit = level * _factor(sign * trend, sign)
        if level > 0 and sign * (now - limit) > 0:
            reason = f"{now / level:.2g} {words.format(level=level)}"
            found.append(Evidence(tag, series.newest, reason, limit=limit, best=level))
    return found if judged else None


def _usual_size(series: Series, sign: float) -> float:
    """Return the size to compare with: held for long, or most of the peak before a fall."""
    held = series.sustained(HELD, -sign)
    return max(held, _PEAK * series.highest[1]) if sign < 0 and series.highest else held


def ignored_input(history: History) -> list[Evidence] | None:
    """Find predictions that are all alike and do not meet their targets."""
    found, judged = [], _judged_predictions(history)
    for tag, alike, match in judged:
        now, level = alike.median(2), alike.sustained(HELD, -1.0)
        limit = 1.0 - _APART_KEPT * (1.0 - level)
        if now > max(limit, _CONSTANT) and match.newest <= _MATCH:
            reason = f"predictions are all alike; their mean cosine was {level:.3g} before, "
            reason += f"that to their targets is {match.newest:.3g}"
            found.append(Evidence(tag, alike.newest, reason, limit=limit, best=level))
    return found if judged else None


def embedded_collapse(history: History) -> list[Evidence] | None:
    """Find predictions that are all alike and meet their targets, which are then all alike too.

    The mean cosine of two targets is estimated by that of two predictions times the square of theirs to the
    targets, as where the rest of a target points anywhere.
    """
    found, judged = [], _judged_predictions(history)
    for tag, alike, match in judged:
        now = alike.median(2) * match.median(2) ** 2
        level = alike.sustained(HELD, -1.0) * match.sustained(HELD, -1.0) ** 2
        limit = 1.0 - _APART_KEPT * (1.0 - level)
        if now > limit and match.median(2) > _MEETS:
            reason = f"predictions are all alike ({alike.newest:.4g}) and meet targets that are so too"
            limit = math.sqrt(limit / alike.median(2))
            found.append(Evidence(_match_of(tag), match.newest, reason, limit=limit))
    return found if judged else None


def _judged_predictions(history: History) -> list[tuple[str, Series, Series]]:
    """Return the tags of mean cosines of two predictions, their series, and those of their match."""
    judged = []
    for tag, alike in history.matching(_PREDICTIONS):
        match = history.get(_match_of(tag))
        if tag in history.fresh and match is not None and match.count and not _is_early(alike):
            judged.append((tag, alike, match))
    return judged


def _match_of(tag: str) -> str:
    """Return the tag of the mean cosine to the targets of the predictions that `tag` is about."""
    return tag.replace("collapse/prediction", "prediction/level").replace(*_OF_PAIRS)


def _point(history: History) -> list[Evidence] | None:
    """Judge the streams and what is predicted of them."""
    streams_, predictions = _each(point_collapse)(history), embedded_collapse(history)
    if streams_ is None and predictions is None:
        return None
    return [*(streams_ or ()), *(predictions or ())]


def _best(series: Series) -> float:
    """Return the highest number so far, of medians where there are enough."""
    return max(series.start_median(), series.highest[1] if series.highest else -math.inf)


def _is_early(series: Series) -> bool:
    return series.count < _FEW or series.steps < _EARLY


def _is_stuck(series: Series, sign: float = 1.0) -> bool:
    """Return whether a number has had time to leave its start and has not done so."""
    if series.count < _STUCK_LOGS or series.steps < _STUCK_STEPS:
        return False
    start, now = series.start[0][1], series.median(3)
    if sign * rank_correlation(series.last(8)) > _RISING:
        return False
    return now <= _BETTER * start if sign > 0 else now >= start / _BETTER


def _probe_holds(history: History) -> bool:
    """Return whether a probe says that the features are as good as ever."""
    logged = ([s for _, s in history.matching(pattern) if s.count > 1] for pattern in _PROBES)
    probes = next((found for found in logged if found), [])
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
        "point_collapse",
        _point,
        (WIDTHS, _PREDICTIONS),
        (*_reads("mean_similarity", "is_constant", "rankme_centered"), _MATCHES),
    ),
    Detector("image_collapse", _each(image_collapse), (WIDTHS,), _reads("between_within_ratio")),
    Detector("partial_collapse", partial_collapse, (WIDTHS,), (*_reads("effective_rank"), *TOTAL_LOSSES)),
    Detector(
        "cluster_collapse", _each(cluster_collapse), (WIDTHS,), (*_reads("neighbor_distance"), *_PROBES)
    ),
    Detector(
        "dimensional_collapse",
        _each(dimensional_collapse),
        (WIDTHS,),
        (*_reads("effective_rank", "pooled_effective_rank", "rankme_centered"), *_PROBES),
    ),
    Detector("dead_features", _each(dead_features), (WIDTHS,), _reads("dead_features")),
    Detector("norm_explosion", norm_explosion, (_NORMS,)),
    Detector("norm_vanishing", norm_vanishing, (_NORMS,)),
    Detector("ignored_input", ignored_input, (_PREDICTIONS,), (_MATCHES,)),
)
