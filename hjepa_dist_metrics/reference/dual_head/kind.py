"""The dual-head job as the training command knows it."""

from __future__ import annotations

from collections.abc import Iterator

from hjepa_dist_metrics.reference.dual_head.config import DataConfig, ModelConfig
from hjepa_dist_metrics.reference.dual_head.workload import build
from hjepa_dist_metrics.reference.trainer import Outcome
from hjepa_dist_metrics.reference.workloads import Row, WorkloadKind

_SHOWN = {
    "Eval/Frame/train_psnr": ("PSNR of training frames", "{:.2f} dB"),
    "Eval/Frame/val_psnr": ("PSNR of validation frames", "{:.2f} dB"),
    "Eval/PSNR_Stats/val_min": ("worst validation frame", "{:.2f} dB"),
    "Eval/Gap/psnr_gap": ("PSNR gap", "{:.2f} dB"),
    "Eval/Frame/train_clip_sim": ("semantic similarity, training", "{:.3f}"),
    "Eval/Frame/val_clip_sim": ("semantic similarity, validation", "{:.3f}"),
    "Train/Loss/total_loss": ("total loss of the epoch", "{:.4f}"),
}


def rows(outcome: Outcome, model: ModelConfig) -> Iterator[Row]:
    """Yield PSNR and similarity on both splits, their gap, and the loss."""
    for tag, (title, form) in _SHOWN.items():
        if tag in outcome.latest:
            yield title, form.format(outcome.first[tag]), form.format(outcome.latest[tag]), ""


KIND = WorkloadKind(ModelConfig, DataConfig, build, rows)
