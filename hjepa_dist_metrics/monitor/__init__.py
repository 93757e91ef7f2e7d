"""The monitor of a training loop: observe, sync when due, write, warn."""

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
