"""Ranks, groups and the collectives between them."""

from hjepa_dist_metrics.distributed.collectives import (
    all_reduce_sum as all_reduce_sum,
    barrier as barrier,
    open_channel as open_channel,
)
from hjepa_dist_metrics.distributed.context import ProcessContext as ProcessContext
from hjepa_dist_metrics.distributed.gathering import gather_rows as gather_rows, row_sizes as row_sizes
from hjepa_dist_metrics.distributed.samplers import (
    ValidSamples as ValidSamples,
    valid_samples as valid_samples,
)
from hjepa_dist_metrics.distributed.wrappers import unwrap as unwrap
