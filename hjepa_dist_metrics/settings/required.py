"""Checks of settings, with one form of error."""

from __future__ import annotations

from hjepa_dist_metrics.errors import ConfigError


def require(ok: bool, key: str, value: object, allowed: str) -> None:
    """Raise ConfigError, naming key, value and what is allowed, unless `ok`."""
    if not ok:
        raise ConfigError(f"logging.{key} is {value!r}; allowed: {allowed}")
