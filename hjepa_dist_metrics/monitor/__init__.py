"""The monitor of a training loop: observe, sync when due, write, warn."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hjepa_dist_metrics.logging.logger import MetricsLogger as MetricsLogger
    from hjepa_dist_metrics.monitor.health.findings import (
        Evidence as Evidence,
        Finding as Finding,
        Health as Health,
    )
    from hjepa_dist_metrics.monitor.health.health_log import Alert as Alert, OnAlert as OnAlert
    from hjepa_dist_metrics.monitor.monitor import TrainingMonitor as TrainingMonitor
    from hjepa_dist_metrics.monitor.observer import Observer as Observer, Scope as Scope
    from hjepa_dist_metrics.monitor.observers.probing.watched_features import WatchFeatures as WatchFeatures
    from hjepa_dist_metrics.monitor.observers.teacher import Encoders as Encoders
    from hjepa_dist_metrics.settings.schema import LoggingConfig as LoggingConfig

# Where each name lives. It is imported at its first use, so that commands can judge logs without loading
# torch; the imports above say the same to type checkers.
_HOMES = {
    "logging.logger": ("MetricsLogger",),
    "monitor.health.findings": ("Evidence", "Finding", "Health"),
    "monitor.health.health_log": ("Alert", "OnAlert"),
    "monitor.monitor": ("TrainingMonitor",),
    "monitor.observer": ("Observer", "Scope"),
    "monitor.observers.probing.watched_features": ("WatchFeatures",),
    "monitor.observers.teacher": ("Encoders",),
    "settings.schema": ("LoggingConfig",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"hjepa_dist_metrics.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
