"""The reference H-JEPA: architecture, objective, masks, probe and settings."""

from hjepa_dist_metrics.reference.hjepa.config import (
    DataConfig as DataConfig,
    EMAConfig as EMAConfig,
    MaskingConfig as MaskingConfig,
    ModelConfig as ModelConfig,
    ObjectiveConfig as ObjectiveConfig,
)
from hjepa_dist_metrics.reference.hjepa.data import load_splits as load_splits
from hjepa_dist_metrics.reference.hjepa.ema import (
    ema_momentum as ema_momentum,
    ema_update as ema_update,
)
from hjepa_dist_metrics.reference.hjepa.masking import (
    MaskBatch as MaskBatch,
    MultiBlockMaskGenerator as MultiBlockMaskGenerator,
)
from hjepa_dist_metrics.reference.hjepa.model import HJEPA as HJEPA, HJEPAOutput as HJEPAOutput
from hjepa_dist_metrics.reference.hjepa.objective import (
    HJEPAObjective as HJEPAObjective,
    ObjectiveResult as ObjectiveResult,
)
from hjepa_dist_metrics.reference.hjepa.probe import knn_accuracy as knn_accuracy
