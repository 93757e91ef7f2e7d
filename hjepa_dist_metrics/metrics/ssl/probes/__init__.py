"""Online probes: how well a simple classifier tells the classes of features."""

from hjepa_dist_metrics.metrics.ssl.probes.knn import KNNProbe as KNNProbe
from hjepa_dist_metrics.metrics.ssl.probes.linear import LinearProbe as LinearProbe
