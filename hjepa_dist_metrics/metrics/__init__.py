"""Metrics: states in, tagged values out."""

from hjepa_dist_metrics.metrics.base import DistributedMetric as DistributedMetric
from hjepa_dist_metrics.metrics.collection import MetricCollection as MetricCollection
from hjepa_dist_metrics.metrics.data.batches import BatchContent as BatchContent
from hjepa_dist_metrics.metrics.data.loader_ends import LoaderEnds as LoaderEnds
from hjepa_dist_metrics.metrics.internals.activations import ActivationStatistics as ActivationStatistics
from hjepa_dist_metrics.metrics.internals.attention import AttentionStatistics as AttentionStatistics
from hjepa_dist_metrics.metrics.internals.experts import ExpertLoad as ExpertLoad
from hjepa_dist_metrics.metrics.multimodal.alignment import (
    ModalityAlignment as ModalityAlignment,
    ModalityEmbeddings as ModalityEmbeddings,
)
from hjepa_dist_metrics.metrics.multimodal.epoch_loss import EpochLoss as EpochLoss
from hjepa_dist_metrics.metrics.named_means import NamedMeans as NamedMeans
from hjepa_dist_metrics.metrics.optimization.clipping import GradientClipping as GradientClipping
from hjepa_dist_metrics.metrics.optimization.coverage import OptimizerCoverage as OptimizerCoverage
from hjepa_dist_metrics.metrics.optimization.gradient_cosines import GradientCosines as GradientCosines
from hjepa_dist_metrics.metrics.optimization.gradients import GradientFlow as GradientFlow
from hjepa_dist_metrics.metrics.optimization.learning_rate import LearningRate as LearningRate
from hjepa_dist_metrics.metrics.optimization.noise import GradientNoise as GradientNoise
from hjepa_dist_metrics.metrics.optimization.replicas import ReplicaAgreement as ReplicaAgreement
from hjepa_dist_metrics.metrics.optimization.stability import TrainingStability as TrainingStability
from hjepa_dist_metrics.metrics.optimization.updates import Updates as Updates
from hjepa_dist_metrics.metrics.reconstruction.heads import (
    HeadGradients as HeadGradients,
    HeadLosses as HeadLosses,
    HeadParameters as HeadParameters,
)
from hjepa_dist_metrics.metrics.reconstruction.image_quality import (
    Reconstruction as Reconstruction,
    SemanticSimilarity as SemanticSimilarity,
    psnr as psnr,
)
from hjepa_dist_metrics.metrics.reconstruction.per_frame import (
    FrameQuality as FrameQuality,
    generalization_gaps as generalization_gaps,
)
from hjepa_dist_metrics.metrics.scalars import (
    ReplicatedScalars as ReplicatedScalars,
    WeightedMean as WeightedMean,
)
from hjepa_dist_metrics.metrics.ssl.collapse import Collapse as Collapse
from hjepa_dist_metrics.metrics.ssl.ema import EMADynamics as EMADynamics
from hjepa_dist_metrics.metrics.ssl.hierarchy import HierarchyFeatures as HierarchyFeatures
from hjepa_dist_metrics.metrics.ssl.loss import HierarchicalLoss as HierarchicalLoss
from hjepa_dist_metrics.metrics.ssl.masking import Masking as Masking
from hjepa_dist_metrics.metrics.ssl.prediction import PredictionQuality as PredictionQuality
from hjepa_dist_metrics.metrics.ssl.probes import KNNProbe as KNNProbe, LinearProbe as LinearProbe
from hjepa_dist_metrics.metrics.ssl.views import ViewAgreement as ViewAgreement
from hjepa_dist_metrics.metrics.system.memory import Memory as Memory, MemoryGrowth as MemoryGrowth
from hjepa_dist_metrics.metrics.system.stragglers import Stragglers as Stragglers
from hjepa_dist_metrics.metrics.system.throughput import (
    Throughput as Throughput,
    TotalSamples as TotalSamples,
)
