"""Training logs as series: runs of tags of (steps, values), and their smoothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.figures.inputs import Floats


class Series(NamedTuple):
    """Hold one tag's values over steps, both float64 [n]."""

    steps: Floats
    values: Floats


# Series of fewer points are drawn as they are.
FEWEST_SMOOTHED = 50
# Smoothing's unit of distance is this part of the run.
_PARTS = 200.0
_SCHEDULE = re.compile(r"learning_rate|momentum|weight_decay|warmup|temperature|(^|[/_])lr($|[/_\d])")

Tags = dict[str, Series]
Runs = dict[str, Tags]


def as_runs(logs: Mapping[str, Any]) -> Runs:
    """Return {run: {tag: Series}} of what users have at hand.

    Takes {run: {tag: series}}, or {tag: series} of one run (named ""); a series is a `Series`, a pair
    (steps, values), or values alone, counted from 0. ConfigError where nothing is in it.
    """
    if not logs:
        raise ConfigError("expected logs with at least one tag, got none")
    nested = all(isinstance(value, Mapping) for value in logs.values())
    runs = logs if nested else {"": logs}
    return {run: {tag: as_series(tag, values) for tag, values in tags.items()} for run, tags in runs.items()}


def as_series(tag: str, values: Any) -> Series:
    """Return steps and values; ConfigError, with the tag, unless both have one length."""
    pair = isinstance(values, tuple) and len(values) == 2 and np.ndim(values[0]) == 1
    steps, numbers = values if pair else (None, values)
    array = np.asarray(numbers, dtype=np.float64)
    places = np.arange(array.size, dtype=np.float64) if steps is None else np.asarray(steps, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or places.shape != array.shape:
        raise ConfigError(
            f"the series {tag!r} needs as many steps as values, got shapes {list(places.shape)} and "
            f"{list(array.shape)}"
        )
    return Series(places, array)


def smooth(
    values: Sequence[float] | Floats, weight: float, steps: Sequence[float] | Floats | None = None
) -> Floats:
    """Return the debiased exponential mean, nonfinite values passed over, float64 [n].

    m_t = sum_i w^(d_ti) x_i / sum_i w^(d_ti) over i <= t; a constant series stays as it is. Without `steps`
    the distance d_ti counts the points from i to t, which is TensorBoard's smoothing. With `steps` [n] it is
    200 (s_t - s_i) / (s_n - s_1): points far apart hardly change each other, so that a series that is logged
    rarely does not lag behind one that is logged often. ConfigError unless 0 <= weight < 1.
    """
    if not 0.0 <= weight < 1.0:
        raise ConfigError(f"smoothing is {weight!r}; allowed: from 0 up to, not including, 1")
    array: Floats = np.asarray(values, dtype=np.float64)
    smoothed: Floats = array.copy()
    if weight == 0.0 or np.all(array == array[:1]):
        return smoothed
    places = np.cumsum(np.isfinite(array)) - 1.0
    if steps is not None:
        at = np.asarray(steps, dtype=np.float64)
        places = _PARTS * (at - at[0]) / max(at[-1] - at[0], 1e-300)
    total = count = last = 0.0
    for i in np.flatnonzero(np.isfinite(array)):
        decay = weight ** (places[i] - last)
        total, count, last = decay * total + array[i], decay * count + 1.0, places[i]
        smoothed[i] = total / count
    return smoothed


def is_smoothable(tag: str, series: Series) -> bool:
    """Return whether a series may be smoothed: no schedule or momentum, and 50 points or more."""
    return len(series.values) >= FEWEST_SMOOTHED and _SCHEDULE.search(tag) is None


def pick(runs: Runs, tags: Sequence[str], what: str) -> Runs:
    """Return the runs' series under these tags; ConfigError, naming what is there, where no run has one."""
    chosen = {run: {tag: have[tag] for tag in tags if tag in have} for run, have in runs.items()}
    if not any(chosen.values()):
        there = sorted({tag for have in runs.values() for tag in have})
        shown = ", ".join(there[:12]) + (", ..." if len(there) > 12 else "")
        raise ConfigError(f"the logs have no {what} ({', '.join(tags)}); they have {shown}")
    return chosen
