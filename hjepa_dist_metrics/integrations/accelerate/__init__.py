"""Accelerate: its loop measured as it stands, this package as one of its trackers, its trackers as sinks."""

from hjepa_dist_metrics.integrations.accelerate.loop import ObservedAccelerator as ObservedAccelerator
from hjepa_dist_metrics.integrations.accelerate.trackers import (
    MetricsTracker as MetricsTracker,
    TrackerSink as TrackerSink,
)
from hjepa_dist_metrics.integrations.micro_batches import MicroBatches as MicroBatches
