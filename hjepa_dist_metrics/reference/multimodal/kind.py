"""Text, image and audio of digits as the training command knows them."""

from __future__ import annotations

from collections.abc import Iterator

from hjepa_dist_metrics import ProcessContext
from hjepa_dist_metrics.reference.multimodal.config import DataConfig, ModelConfig
from hjepa_dist_metrics.reference.multimodal.data import digits
from hjepa_dist_metrics.reference.multimodal.workload import MultimodalWorkload
from hjepa_dist_metrics.reference.trainer import Outcome
from hjepa_dist_metrics.reference.training import TrainingConfig
from hjepa_dist_metrics.reference.workloads import Row, WorkloadKind


def build(
    model: ModelConfig, data: DataConfig, training: TrainingConfig, context: ProcessContext
) -> MultimodalWorkload:
    """Return the workload over the digits."""
    return MultimodalWorkload(model, digits(data, training.seed), data.batch_size, training, context)


def rows(outcome: Outcome, model: ModelConfig) -> Iterator[Row]:
    """Yield validation losses, and how well right pairs stand out and are found, against chance."""
    first, latest = outcome.first, outcome.latest
    chance = latest.get("alignment/recall_at_5_chance", 0.0)
    for tag in sorted(latest):
        head, _, name = tag.rpartition("/")
        start, end = first[tag], latest[tag]
        if head == "loss/val":
            yield tag, f"{start:.3f}", f"{end:.3f}", ""
        elif name == "diagonal_similarity":
            mean = latest[f"{head}/mean_similarity"]
            yield (
                head.removeprefix("alignment/") + " cosine",
                f"{start:.3f}",
                f"{end:.3f}",
                f"{mean:.3f} of all",
            )
        elif name.startswith("recall_at_5_") and "_vs_" in head:
            shown = name.replace("_", " ").replace("at 5", "@5")
            yield shown, f"{100 * start:.1f} %", f"{100 * end:.1f} %", f"{100 * chance:.1f} % chance"
        elif name.startswith("same_class_"):
            yield name.replace("_", " "), f"{100 * start:.1f} %", f"{100 * end:.1f} %", "10 % chance"


KIND = WorkloadKind(ModelConfig, DataConfig, build, rows)
