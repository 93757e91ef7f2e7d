"""The reference dual-head job: a patch-wise video representation that paints and describes."""

from hjepa_dist_metrics.reference.dual_head.config import (
    DataConfig as DataConfig,
    ModelConfig as ModelConfig,
    SemanticConfig as SemanticConfig,
)
from hjepa_dist_metrics.reference.dual_head.encoders import (
    ClipEncoder as ClipEncoder,
    HandcraftedEncoder as HandcraftedEncoder,
    ImageEncoder as ImageEncoder,
)
from hjepa_dist_metrics.reference.dual_head.heads import (
    Head as Head,
    rgb_head as rgb_head,
    semantic_head as semantic_head,
)
from hjepa_dist_metrics.reference.dual_head.model import PatchField as PatchField
from hjepa_dist_metrics.reference.dual_head.video import (
    Patches as Patches,
    load_videos as load_videos,
    split_frames as split_frames,
)
from hjepa_dist_metrics.reference.dual_head.workload import DualHeadWorkload as DualHeadWorkload
