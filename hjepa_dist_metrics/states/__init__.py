"""Pure, mergeable states: the only thing that crosses ranks."""

from hjepa_dist_metrics.states.base import RowState as RowState
from hjepa_dist_metrics.states.base import State as State
from hjepa_dist_metrics.states.extremes import (
    Max as Max,
)
from hjepa_dist_metrics.states.extremes import (
    Min as Min,
)
from hjepa_dist_metrics.states.extremes import (
    Replicated as Replicated,
)
from hjepa_dist_metrics.states.extremes import (
    Sum as Sum,
)
from hjepa_dist_metrics.states.moments import Covariance as Covariance
from hjepa_dist_metrics.states.moments import Moments as Moments
from hjepa_dist_metrics.states.samples import Concat as Concat
from hjepa_dist_metrics.states.samples import Histogram as Histogram
from hjepa_dist_metrics.states.samples import Sample as Sample
