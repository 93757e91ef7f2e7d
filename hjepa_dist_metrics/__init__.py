"""Training metrics that are true of the whole job: exact over ranks, checked, nearly free."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hjepa_dist_metrics.version import __version__ as __version__

if TYPE_CHECKING:
    from hjepa_dist_metrics.errors import (
        ConfigError as ConfigError,
        DesyncError as DesyncError,
        MetricsError as MetricsError,
        MissingExtraError as MissingExtraError,
        RankFailureError as RankFailureError,
        SyncTimeoutError as SyncTimeoutError,
    )
    from hjepa_dist_metrics.metrics import (
        ActivationStatistics as ActivationStatistics,
        AttentionStatistics as AttentionStatistics,
        BatchContent as BatchContent,
        Collapse as Collapse,
        DistributedMetric as DistributedMetric,
        EMADynamics as EMADynamics,
        EpochLoss as EpochLoss,
        ExpertLoad as ExpertLoad,
        FrameQuality as FrameQuality,
        GradientClipping as GradientClipping,
        GradientCosines as GradientCosines,
        GradientFlow as GradientFlow,
        GradientNoise as GradientNoise,
        HeadGradients as HeadGradients,
        HeadLosses as HeadLosses,
        HeadParameters as HeadParameters,
        HierarchicalLoss as HierarchicalLoss,
        HierarchyFeatures as HierarchyFeatures,
        KNNProbe as KNNProbe,
        LearningRate as LearningRate,
        LinearProbe as LinearProbe,
        LoaderEnds as LoaderEnds,
        Masking as Masking,
        Memory as Memory,
        MemoryGrowth as MemoryGrowth,
        MetricCollection as MetricCollection,
        ModalityAlignment as ModalityAlignment,
        ModalityEmbeddings as ModalityEmbeddings,
        NamedMeans as NamedMeans,
        OptimizerCoverage as OptimizerCoverage,
        PredictionQuality as PredictionQuality,
        Reconstruction as Reconstruction,
        ReplicaAgreement as ReplicaAgreement,
        ReplicatedScalars as ReplicatedScalars,
        SemanticSimilarity as SemanticSimilarity,
        Stragglers as Stragglers,
        Throughput as Throughput,
        TotalSamples as TotalSamples,
        TrainingStability as TrainingStability,
        Updates as Updates,
        ViewAgreement as ViewAgreement,
        WeightedMean as WeightedMean,
    )
    from hjepa_dist_metrics.monitor import (
        Alert as Alert,
        Encoders as Encoders,
        Evidence as Evidence,
        Finding as Finding,
        Health as Health,
        LoggingConfig as LoggingConfig,
        MetricsLogger as MetricsLogger,
        Observer as Observer,
        TrainingMonitor as TrainingMonitor,
    )
    from hjepa_dist_metrics.parallel import (
        ParallelLayout as ParallelLayout,
        ProcessContext as ProcessContext,
        gather_rows as gather_rows,
        valid_samples as valid_samples,
    )
    from hjepa_dist_metrics.values import Scalar as Scalar, Value as Value

# Where each public name lives. It is imported at its first use, so that importing the package costs next to
# nothing; the imports above say the same to type checkers.
_HOMES = {
    "parallel": ("ParallelLayout", "ProcessContext", "gather_rows", "valid_samples"),
    "errors": (
        "ConfigError",
        "DesyncError",
        "MetricsError",
        "MissingExtraError",
        "RankFailureError",
        "SyncTimeoutError",
    ),
    "metrics": (
        "ActivationStatistics",
        "AttentionStatistics",
        "BatchContent",
        "Collapse",
        "DistributedMetric",
        "EMADynamics",
        "EpochLoss",
        "ExpertLoad",
        "FrameQuality",
        "GradientClipping",
        "GradientCosines",
        "GradientFlow",
        "GradientNoise",
        "HeadGradients",
        "HeadLosses",
        "HeadParameters",
        "HierarchicalLoss",
        "HierarchyFeatures",
        "KNNProbe",
        "LearningRate",
        "LinearProbe",
        "LoaderEnds",
        "Masking",
        "Memory",
        "MemoryGrowth",
        "MetricCollection",
        "ModalityAlignment",
        "ModalityEmbeddings",
        "PredictionQuality",
        "NamedMeans",
        "OptimizerCoverage",
        "Reconstruction",
        "ReplicaAgreement",
        "ReplicatedScalars",
        "SemanticSimilarity",
        "Stragglers",
        "Throughput",
        "TotalSamples",
        "TrainingStability",
        "Updates",
        "ViewAgreement",
        "WeightedMean",
    ),
    "monitor": (
        "Alert",
        "Encoders",
        "Evidence",
        "Finding",
        "Health",
        "LoggingConfig",
        "MetricsLogger",
        "Observer",
        "TrainingMonitor",
    ),
    "values": ("Scalar", "Value"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
