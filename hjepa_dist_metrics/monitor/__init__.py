"""The monitor of a training loop: observe, sync when due, write, warn."""

from hjepa_dist_metrics.monitor.alerts import Alert as Alert
from hjepa_dist_metrics.monitor.config import LoggingConfig as LoggingConfig
from hjepa_dist_metrics.monitor.logger import MetricsLogger as MetricsLogger
from hjepa_dist_metrics.monitor.monitor import TrainingMonitor as TrainingMonitor
