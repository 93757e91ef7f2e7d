"""Tags from nested dictionaries and prefixes, and the step of a call that names none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.values import Value

SEPARATOR = "/"


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


class StepCounter:
    """Say which step a call without one belongs to.

    It belongs to the current step, which is the latest that any call had; where one of its tags has a value
    there already, it begins the next one.
    """

    def __init__(self, start: int = 0) -> None:
        self.current = start
        self._latest: dict[str, int] = {}

    def resolve(self, step: int | None, tags: Iterable[str]) -> int:
        """Return the step of a call that writes `tags`, and remember it."""
        names = list(tags)
        if step is None:
            step = max([self.current, *(self._latest[tag] + 1 for tag in names if tag in self._latest)])
        number = int(step)
        self.current = max(self.current, number)
        self._latest.update((tag, max(number, self._latest.get(tag, number))) for tag in names)
        return number


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
