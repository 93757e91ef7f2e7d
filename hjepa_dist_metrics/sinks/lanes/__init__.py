"""One queue and one thread for each place that may be slow by itself."""

from hjepa_dist_metrics.sinks.lanes.lane import Lane as Lane
from hjepa_dist_metrics.sinks.lanes.retrying import Retrying as Retrying
