"""Tags from nested dictionaries and prefixes, and the step of a call that names none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.values import Scalar, Value

SEPARATOR = "/"

# Numbers that do not change any more: they may be kept as they are until they are written.
_PLAIN_NUMBERS: frozenset[type] = frozenset(
    {float, int, bool, Scalar, np.float16, np.float32, np.float64, np.int32, np.int64, np.bool_}
)
_MOST_SETS = 1024


def join(prefix: str, name: str, separator: str = SEPARATOR) -> str:
    """Return `prefix/name`, without empty parts."""
    return separator.join(part for part in (prefix.strip(separator), name.strip(separator)) if part)


def flatten(metrics: Mapping[str, Any], prefix: str = "", separator: str = SEPARATOR) -> dict[str, Any]:
    """Return tag -> value of nested mappings: `{"loss": {"h0": 1}}` under `train` is `{"train/loss/h0": 1}`.

    Raises ConfigError for a tag that two entries give, or an empty one.
    """
    flat: dict[str, Any] = {}
    for tag, value in _walk(metrics, prefix, separator):
        if tag in flat or not tag:
            raise ConfigError(f"two metrics have the tag {tag!r}" if tag else "a metric needs a name, got ''")
        flat[tag] = value
    return flat


def numbers(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the flattened metrics; ConfigError, naming the tag, for what is neither a number nor a Value.

    Only shapes are looked at, so that ranks that do not write, and devices, are not waited for.
    """
    flat = flatten(metrics, prefix)
    for tag, value in flat.items():
        if not _is_number(value):
            raise ConfigError(f"metric {tag!r} must be a number or hold one element, got {_describe(value)}")
    return flat


class PlainTags:
    """Return the tags of dictionaries that hold nothing but plain numbers, in a few microseconds.

    Flattening 100 names takes 100 us. A training loop logs the same names again and again: they are looked
    at once, and from then on only the types of the values are, in C.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._last: tuple[str, tuple[str, ...], tuple[str, ...]] = ("", (), ())

    def of(self, metrics: Mapping[str, Any], prefix: str) -> tuple[str, ...] | None:
        """Return the tags in order, the same object each time; None where the mapping is no such dictionary.

        Raises ConfigError for a tag that two entries give, or an empty one.
        """
        if type(metrics) is not dict or not _PLAIN_NUMBERS.issuperset(map(type, metrics.values())):
            return None
        names = tuple(metrics)
        last_prefix, last_names, last_tags = self._last
        if names == last_names and prefix == last_prefix:
            return last_tags
        tags = self._known.get((prefix, *names)) or self._look_at(metrics, prefix)
        if tags is not None:
            self._last = (prefix, names, tags)
        return tags

    def _look_at(self, metrics: dict[str, Any], prefix: str) -> tuple[str, ...] | None:
        if not all(type(name) is str for name in metrics):
            return None
        if len(self._known) >= _MOST_SETS:
            self._known.clear()
        names = (prefix, *metrics)
        tags = self._known[names] = tuple(flatten(metrics, prefix))
        return tags


class StepCounter:
    """Say which step a call without one belongs to.

    It belongs to the current step, which is the latest that any call had; where one of its tags has a value
    there already, it begins the next one. Tags that come together are remembered together.
    """

    def __init__(self, start: int = 0) -> None:
        self.current = start
        self._latest: dict[tuple[str, ...], int] = {}
        self._sets_of: dict[str, list[tuple[str, ...]]] = {}
        self._limit = _MOST_SETS
        # The set of the last call, whose latest step is not in `_latest` yet.
        self._last: tuple[str, ...] | None = None
        self._latest_of_last = start

    def resolve(self, step: int | None, tags: Iterable[str]) -> int:
        """Return the step of a call that writes `tags`, and remember it."""
        names = tags if type(tags) is tuple else tuple(tags)
        if step is not None and names is self._last and step > self.current:  # the usual call, quickly
            self.current = self._latest_of_last = int(step)
            return self.current
        self._remember_last()
        if step is None:
            sets = (members for name in names for members in self._sets_of.get(name, ()))
            step = max([self.current, *(self._latest[members] + 1 for members in sets)])
        number = int(step)
        self.current = max(self.current, number)
        latest = self._latest.get(names)
        if latest is None:
            self._add(names)
        if latest is None or number > latest:
            self._latest[names] = number
        self._last, self._latest_of_last = names, self._latest[names]
        return number

    def _remember_last(self) -> None:
        if self._last is not None:
            self._latest[self._last] = self._latest_of_last

    def _add(self, names: tuple[str, ...]) -> None:
        if len(self._latest) >= self._limit:
            self._forget_sets()
        for name in names:
            self._sets_of.setdefault(name, []).append(names)

    def _forget_sets(self) -> None:
        """Remember each tag by itself: a loop that logs other tags together each time makes many sets."""
        latest = {
            name: max(self._latest[members] for members in sets) for name, sets in self._sets_of.items()
        }
        self._latest = {(name,): number for name, number in latest.items()}
        self._sets_of = {name: [(name,)] for name in latest}
        self._limit = 2 * len(latest) + _MOST_SETS


def _walk(metrics: Mapping[str, Any], prefix: str, separator: str) -> Iterator[tuple[str, Any]]:
    for key, value in metrics.items():
        tag = join(prefix, str(key), separator)
        if isinstance(value, Mapping):
            yield from _walk(value, tag, separator)
        else:
            yield tag, value


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    if isinstance(value, np.ndarray):
        return value.size == 1 and value.dtype.kind in "biuf"
    if isinstance(value, (str, bytes, complex)):
        return False
    return isinstance(value, Value) or hasattr(value, "__float__")


def _describe(value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{kind} of shape {list(value.shape)} and {value.dtype}: log_histogram takes those"
    return f"{kind} {value!r}"
