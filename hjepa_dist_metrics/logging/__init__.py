"""MetricsLogger and what it hands to the sinks."""

from hjepa_dist_metrics.logging.logger import MetricsLogger as MetricsLogger
