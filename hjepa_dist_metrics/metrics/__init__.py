"""Metrics: states in, tagged values out."""

from hjepa_dist_metrics.metrics.base import DistributedMetric as DistributedMetric
from hjepa_dist_metrics.metrics.collection import MetricCollection as MetricCollection
