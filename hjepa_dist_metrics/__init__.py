"""Training metrics that are true of the whole job: exact over ranks, checked, nearly free."""

from hjepa_dist_metrics.distributed import ProcessContext as ProcessContext
from hjepa_dist_metrics.errors import (
    ConfigError as ConfigError,
)
from hjepa_dist_metrics.errors import (
    DesyncError as DesyncError,
)
from hjepa_dist_metrics.errors import (
    MetricsError as MetricsError,
)
from hjepa_dist_metrics.errors import (
    MissingExtraError as MissingExtraError,
)
from hjepa_dist_metrics.errors import (
    RankFailureError as RankFailureError,
)
from hjepa_dist_metrics.errors import (
    SyncTimeoutError as SyncTimeoutError,
)
from hjepa_dist_metrics.metrics import (
    DistributedMetric as DistributedMetric,
)
from hjepa_dist_metrics.metrics import (
    MetricCollection as MetricCollection,
)
from hjepa_dist_metrics.values import Scalar as Scalar
from hjepa_dist_metrics.values import Value as Value
from hjepa_dist_metrics.version import __version__ as __version__
