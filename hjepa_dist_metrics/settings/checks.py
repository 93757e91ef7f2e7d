"""Checks of settings: a bad value raises ConfigError naming key, value and what is valid."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable

from hjepa_dist_metrics.errors import ConfigError


def compiles(pattern: str) -> bool:
    """Return whether a pattern is a regular expression."""
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def require(ok: bool, key: str, value: object, allowed: str) -> None:
    """Raise ConfigError unless a setting is as it must be."""
    if not ok:
        raise ConfigError(f"logging.{key} is {value!r}; allowed: {allowed}")


def require_known(key: str, names: Iterable[str], known: Collection[str]) -> None:
    """Raise ConfigError for a name that is not known, with the nearest that is."""
    for name in names:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        require(name in known, key, name, f"{', '.join(known)}{hint}")
