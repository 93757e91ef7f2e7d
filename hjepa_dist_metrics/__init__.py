"""Training metrics that are true of the whole job: exact over ranks, checked, nearly free."""

from hjepa_dist_metrics.distributed import ProcessContext as ProcessContext
from hjepa_dist_metrics.errors import (
    ConfigError as ConfigError,
    DesyncError as DesyncError,
    MetricsError as MetricsError,
    MissingExtraError as MissingExtraError,
    RankFailureError as RankFailureError,
    SyncTimeoutError as SyncTimeoutError,
)
from hjepa_dist_metrics.metrics import (
    Collapse as Collapse,
    DistributedMetric as DistributedMetric,
    GradientClipping as GradientClipping,
    HierarchicalLoss as HierarchicalLoss,
    LearningRate as LearningRate,
    MetricCollection as MetricCollection,
    ReplicatedScalars as ReplicatedScalars,
    Throughput as Throughput,
    WeightedMean as WeightedMean,
)
from hjepa_dist_metrics.monitor import (
    Alert as Alert,
    LoggingConfig as LoggingConfig,
    TrainingMonitor as TrainingMonitor,
)
from hjepa_dist_metrics.values import Scalar as Scalar, Value as Value
from hjepa_dist_metrics.version import __version__ as __version__
