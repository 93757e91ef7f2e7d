"""Settings of a run: what is logged, where, and how often."""

from hjepa_dist_metrics.settings.schema import LoggingConfig as LoggingConfig
