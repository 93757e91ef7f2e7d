"""Ranks, groups and the collectives between them."""

from hjepa_dist_metrics.parallel.collectives import (
    all_reduce_sum as all_reduce_sum,
    barrier as barrier,
    open_channel as open_channel,
)
from hjepa_dist_metrics.parallel.context import ProcessContext as ProcessContext
from hjepa_dist_metrics.parallel.gathering import gather_rows as gather_rows, row_sizes as row_sizes
from hjepa_dist_metrics.parallel.layout import ParallelLayout as ParallelLayout
from hjepa_dist_metrics.parallel.samplers import (
    ValidSamples as ValidSamples,
    valid_samples as valid_samples,
)
from hjepa_dist_metrics.parallel.wrappers import unwrap as unwrap
