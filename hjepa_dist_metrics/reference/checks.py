"""Checks that configuration dataclasses share: a bad value is one line that names its key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from hjepa_dist_metrics.errors import ConfigError


def require(ok: bool, key: str, value: object, allowed: str) -> None:
    """Raise ConfigError unless `ok`; the message names the key, its value and what is allowed."""
    if not ok:
        raise ConfigError(f"{key} is {value!r}; allowed: {allowed}")


def require_choice(key: str, value: object, kind: object) -> None:
    """Raise ConfigError unless the value is one of a Literal's."""
    choices = get_args(kind)
    require(value in choices, key, value, "one of " + ", ".join(map(repr, choices)))


def require_at_least(key: str, value: int | float, low: int | float) -> None:
    """Raise ConfigError where the value is below `low`."""
    require(value >= low, key, value, f"{low} or more")


def require_range(key: str, value: Sequence[float], low: float, high: float) -> None:
    """Raise ConfigError unless the value is a rising pair in (low, high]."""
    ok = len(value) == 2 and low < value[0] <= value[1] <= high
    require(ok, key, value, f"two rising numbers, above {low} and at most {high}")
