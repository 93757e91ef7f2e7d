"""The numbers to look at first, and which tags are read rarely: what TensorBoard shows of a run, and where.

TensorBoard's TIME SERIES page sorts groups of tags by name, digits first, and opens the first two. The
headline numbers are written into a group of their own there, under second names; they are in no other output.
"""

from __future__ import annotations

import json
import re
from urllib.parse import quote

GROUP = "0_health"

# Name in the group -> the tag that it repeats.
CARDS = {
    "1_verdict": "health/score",
    "2_loss": "loss/total",
    "3_effective_rank": "collapse/effective_rank",
    "4_pooled_effective_rank": "collapse/pooled_effective_rank",
    "5_gradient_norm": "gradient/global_norm_before_clip",
    "6_clipped_steps": "gradient/clipping_percentage",
    "7_probe_accuracy": "val/knn_accuracy",
    "8_samples_per_second": "performance/samples_per_second",
    "9_straggler_score": "performance/straggler_score",
}
SECOND_NAMES = {tag: f"{GROUP}/{name}" for name, tag in CARDS.items()}

# Tags that are left out of TensorBoard where `logging.detail` is "standard". The judge reads many of them;
# JSON lines have them all.
_RARELY_READ = re.compile(
    "|".join(
        (
            # sizes of what was measured, and counts that are 0: a finding says so where they are not
            r"collapse/(.+_)?(num_samples|num_features|nonfinite|is_constant)",
            r"(hierarchy|prediction)/level\d+_nonfinite|prediction/level\d+_num_tokens",
            r"activation/nonfinite|experts/(num_experts|experts_per_token)",
            r"(loss|gradients)/nonfinite|stability/nonfinite_steps|parameters/.*|data/.*",
            r"masking/(repeated_batches|repeated_fraction|unique_masks)|gradients/target_encoder_.*",
            # representations in depth: of streams beside the first, the rank and the similarity stay
            r"collapse/.+_pooled_.*|collapse/(level|prediction)\d+_.*|probe/.+_(rows|nonfinite|loss|top5)",
            r"collapse/[^/]+_(mean_std_per_dim|min_std_per_dim|std_similarity|max_similarity|uniformity"
            r"|rankme|participation_ratio|stable_rank|vicreg_variance|vicreg_covariance|alpha_req|sigreg|lidar"
            r"|between_within_ratio)",
            r"collapse/(.+_)?(rankme_centered|centered_similarity|duplicate_share|mean_share|dead_features"
            r"|neighbor_distance|rms_norm|alpha_req_r2)",
            r"hierarchy/level\d+_(compute|memory)_share|prediction/level\d+_cka",
            # the optimizer and the objective in depth
            r"gradients/[^/]+_(abs_sum|zero_fraction)|loss/convergence_rate_h\d+",
            r"update/[^/]+_(norm|exp_avg_norm|exp_avg_sq_mean)|weights/[^/]+_(mean|std)",
            r"stability/worst_spike_(score|height)|ema/weight_(distance|move)",
            # the machine in depth
            r"performance/(forward|backward|data|optimizer)_time_ms_max|performance/.+_time_ms_max_rank",
            r"performance/(total_samples|total_tokens|samples_per_second_total|slow_ranks)",
            r"sync/(rounds|bytes|wait_seconds|slowest_rank)|performance/gpu_memory_.+_gb_rank",
        )
    )
)


def is_rarely_read(tag: str) -> bool:
    """Return whether TensorBoard shows the tag only where `logging.detail` is "full"."""
    return _RARELY_READ.fullmatch(tag) is not None


def shown_names(tag: str, everything: bool = False) -> tuple[str, ...]:
    """Return the names under which TensorBoard shows a monitored run's tag: none for one that is read rarely.

    `everything` is `logging.detail: full`.
    """
    if not everything and is_rarely_read(tag):
        return ()
    second = SECOND_NAMES.get(tag)
    return (tag,) if second is None else (tag, second)


def pinned_link(server: str) -> str:
    """Return the address of TensorBoard's TIME SERIES page with the headline numbers pinned to its top.

    `server` is such as `http://localhost:6006`. Pins of tags that a run lacks are not shown.
    """
    cards = [{"plugin": "scalars", "tag": tag} for tag in CARDS.values()]
    pinned = quote(json.dumps(cards, separators=(",", ":")), safe="")
    return f"{server}/?pinnedCards={pinned}&smoothing=0#timeseries"


def is_second_name(tag: str) -> bool:
    """Return whether the tag repeats another one, in TensorBoard only."""
    return tag.startswith(GROUP + "/")
