"""Training logs as series: runs of tags of (steps, values), and TensorBoard's smoothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.figures.inputs import Floats


class Series(NamedTuple):
    """Hold one tag's values over steps, both float64 [n]."""

    steps: Floats
    values: Floats


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


def smooth(values: Sequence[float] | Floats, weight: float) -> Floats:
    """Return the exponential mean as TensorBoard draws it: debiased, nonfinite values passed by, float64 [n].

    m_t = w m_{t-1} + (1 - w) x_t from m_0 = 0, divided by 1 - w^t; a constant series stays as it is.
    """
    if not 0.0 <= weight < 1.0:
        raise ConfigError(f"smoothing is {weight!r}; allowed: from 0 up to, not including, 1")
    array: Floats = np.asarray(values, dtype=np.float64)
    if weight == 0.0 or np.all(array == array[:1]):
        unchanged: Floats = array.copy()
        return unchanged
    smoothed: Floats = array.copy()
    mean = 0.0
    for count, i in enumerate(np.flatnonzero(np.isfinite(array)), start=1):
        mean = weight * mean + (1.0 - weight) * array[i]
        smoothed[i] = mean / (1.0 - weight**count)
    return smoothed


def pick(runs: Runs, tags: Sequence[str], what: str) -> Runs:
    """Return the runs' series under these tags; ConfigError, naming what is there, where no run has one."""
    chosen = {run: {tag: have[tag] for tag in tags if tag in have} for run, have in runs.items()}
    if not any(chosen.values()):
        there = sorted({tag for have in runs.values() for tag in have})
        shown = ", ".join(there[:12]) + (", ..." if len(there) > 12 else "")
        raise ConfigError(f"the logs have no {what} ({', '.join(tags)}); they have {shown}")
    return chosen
