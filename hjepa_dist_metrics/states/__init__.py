"""Pure, mergeable states: the only thing that crosses ranks."""

from hjepa_dist_metrics.states.base import State as State
from hjepa_dist_metrics.states.extremes import (
    Max as Max,
    Min as Min,
    Replicated as Replicated,
)
from hjepa_dist_metrics.states.histogram import Histogram as Histogram
from hjepa_dist_metrics.states.keyed import GroupSums as GroupSums
from hjepa_dist_metrics.states.layers.fourth_moments import FourthMoments as FourthMoments
from hjepa_dist_metrics.states.layers.head_sums import HeadSums as HeadSums
from hjepa_dist_metrics.states.layers.named_rows import NamedRows as NamedRows
from hjepa_dist_metrics.states.layers.unit_ranges import UnitRanges as UnitRanges
from hjepa_dist_metrics.states.lazy import Lazy as Lazy, of_width as of_width, resolved as resolved
from hjepa_dist_metrics.states.moments import Moments as Moments
from hjepa_dist_metrics.states.named import NamedSums as NamedSums
from hjepa_dist_metrics.states.ranks.rank_extremes import RankExtremes as RankExtremes
from hjepa_dist_metrics.states.ranks.rank_table import RankTable as RankTable
from hjepa_dist_metrics.states.ranks.sharded import (
    ShardedCounts as ShardedCounts,
    ShardedMax as ShardedMax,
    ShardedMin as ShardedMin,
    ShardedSum as ShardedSum,
)
from hjepa_dist_metrics.states.row_state import RowState as RowState
from hjepa_dist_metrics.states.second_moments.class_scatter import ClassScatter as ClassScatter
from hjepa_dist_metrics.states.second_moments.covariance import Covariance as Covariance
from hjepa_dist_metrics.states.second_moments.paired_covariance import PairedCovariance as PairedCovariance
from hjepa_dist_metrics.states.sketches.bottom_k import BottomK as BottomK
from hjepa_dist_metrics.states.sketches.distinct import Distinct as Distinct
from hjepa_dist_metrics.states.sketches.recent_sample import RecentSample as RecentSample
from hjepa_dist_metrics.states.sketches.uniform_sample import Concat as Concat, Sample as Sample
from hjepa_dist_metrics.states.step_window import StepWindow as StepWindow
from hjepa_dist_metrics.states.sums import Mean as Mean, Sum as Sum
