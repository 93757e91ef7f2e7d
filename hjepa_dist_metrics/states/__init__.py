"""Pure, mergeable states: the only thing that crosses ranks."""

from hjepa_dist_metrics.states.base import State as State
from hjepa_dist_metrics.states.class_scatter import ClassScatter as ClassScatter
from hjepa_dist_metrics.states.covariance import Covariance as Covariance
from hjepa_dist_metrics.states.distinct import Distinct as Distinct
from hjepa_dist_metrics.states.extremes import (
    Max as Max,
    Min as Min,
    Replicated as Replicated,
)
from hjepa_dist_metrics.states.grouped import GroupSums as GroupSums
from hjepa_dist_metrics.states.histogram import Histogram as Histogram
from hjepa_dist_metrics.states.lazy import Lazy as Lazy, of_width as of_width, resolved as resolved
from hjepa_dist_metrics.states.lowest import Lowest as Lowest
from hjepa_dist_metrics.states.moments import Moments as Moments
from hjepa_dist_metrics.states.named import NamedSums as NamedSums
from hjepa_dist_metrics.states.per_rank import PerRank as PerRank
from hjepa_dist_metrics.states.rank_table import RankTable as RankTable
from hjepa_dist_metrics.states.recent import Recent as Recent
from hjepa_dist_metrics.states.row_state import RowState as RowState
from hjepa_dist_metrics.states.samples import Concat as Concat, Sample as Sample
from hjepa_dist_metrics.states.sharded import (
    ShardedCounts as ShardedCounts,
    ShardedMax as ShardedMax,
    ShardedMin as ShardedMin,
    ShardedSum as ShardedSum,
)
from hjepa_dist_metrics.states.sums import Mean as Mean, Sum as Sum
