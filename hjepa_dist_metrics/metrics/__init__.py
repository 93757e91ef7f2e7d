"""Metrics: states in, tagged values out."""

from hjepa_dist_metrics.metrics.accumulate import NamedMeans as NamedMeans
from hjepa_dist_metrics.metrics.alignment import (
    ModalityAlignment as ModalityAlignment,
    ModalityEmbeddings as ModalityEmbeddings,
)
from hjepa_dist_metrics.metrics.base import DistributedMetric as DistributedMetric
from hjepa_dist_metrics.metrics.clipping import GradientClipping as GradientClipping
from hjepa_dist_metrics.metrics.collapse import Collapse as Collapse
from hjepa_dist_metrics.metrics.collection import MetricCollection as MetricCollection
from hjepa_dist_metrics.metrics.ema import EMADynamics as EMADynamics
from hjepa_dist_metrics.metrics.epoch import EpochLoss as EpochLoss
from hjepa_dist_metrics.metrics.frames import (
    FrameQuality as FrameQuality,
    generalization_gaps as generalization_gaps,
)
from hjepa_dist_metrics.metrics.gradients import GradientFlow as GradientFlow
from hjepa_dist_metrics.metrics.heads import (
    HeadGradients as HeadGradients,
    HeadLosses as HeadLosses,
    HeadParameters as HeadParameters,
)
from hjepa_dist_metrics.metrics.hierarchy import HierarchyFeatures as HierarchyFeatures
from hjepa_dist_metrics.metrics.learning_rate import LearningRate as LearningRate
from hjepa_dist_metrics.metrics.loss import HierarchicalLoss as HierarchicalLoss
from hjepa_dist_metrics.metrics.masking import Masking as Masking
from hjepa_dist_metrics.metrics.memory import Memory as Memory
from hjepa_dist_metrics.metrics.noise import GradientNoise as GradientNoise
from hjepa_dist_metrics.metrics.prediction import PredictionQuality as PredictionQuality
from hjepa_dist_metrics.metrics.reconstruction import (
    Reconstruction as Reconstruction,
    SemanticSimilarity as SemanticSimilarity,
    psnr as psnr,
)
from hjepa_dist_metrics.metrics.scalars import (
    ReplicatedScalars as ReplicatedScalars,
    WeightedMean as WeightedMean,
)
from hjepa_dist_metrics.metrics.stability import TrainingStability as TrainingStability
from hjepa_dist_metrics.metrics.stragglers import Stragglers as Stragglers
from hjepa_dist_metrics.metrics.throughput import Throughput as Throughput, TotalSamples as TotalSamples
from hjepa_dist_metrics.metrics.updates import Updates as Updates
