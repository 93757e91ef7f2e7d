"""A run's logging settings, where the training's own settings fill in what is not given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hjepa_dist_metrics.settings.mapping import to_mapping
from hjepa_dist_metrics.settings.schema import LoggingConfig, from_mapping


def logging_config(config: Any, defaults: Mapping[str, Any]) -> LoggingConfig:
    """Return the configuration for `TrainingMonitor`; `defaults` are for the keys that it leaves out."""
    settings = from_mapping(config)
    if isinstance(config, LoggingConfig):
        return config
    section = to_mapping(config) or {}
    section = to_mapping(section.get("logging", section)) or {}
    return replace(settings, **{key: value for key, value in defaults.items() if key not in section})
