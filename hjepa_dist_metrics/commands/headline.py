"""The dozen numbers that tell most of a run, and the curves that a person looks at first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hjepa_dist_metrics import catalog
from hjepa_dist_metrics.catalog import Limits
from hjepa_dist_metrics.catalog.run_limits import healthy_range, limits_of
from hjepa_dist_metrics.commands.runs import Run

MOST_NUMBERS = 12


@dataclass(frozen=True)
class Curve:
    """Describe a chart: a title, and the patterns (regular expressions of whole tags) of its lines.

    `numbers` are patterns too: the first tag that a run has is among its headline numbers, under `label`.
    `limited` is the tag whose healthy range the chart shows, `limits` are the judge's at each step.
    """

    title: str
    lines: tuple[str, ...]
    label: str = ""
    numbers: tuple[str, ...] = ()
    limited: str = ""
    limits: tuple[str, ...] = ()

    def tags(self, run: Run) -> list[str]:
        """Return the run's tags that the chart shows, in the order of the patterns."""
        return list(dict.fromkeys(_matching(run, self.lines)))

    def number(self, run: Run) -> str:
        """Return the tag of the run's headline number, "" where it has none."""
        return next(_matching(run, self.numbers), "")


CURVES = (
    Curve(
        "Loss",
        (r"loss/total", r"Train/Loss/total_loss", r"train_epoch/loss", r"val/loss", r"loss/val/total"),
        "loss",
        ("loss/total", "Train/Loss/total_loss", "train/loss"),
    ),
    Curve("Validation loss", (), "validation loss", ("val/loss", "loss/val/total")),
    Curve(
        "Loss by level or term",
        (
            *(r"loss/h\d+", r"loss/variance", r"loss/covariance", r"loss/train/(?!epoch_|total)[^/]+"),
            *(r"Train/Loss/pixel_loss", r"Train/Loss/clip_loss"),
        ),
    ),
    Curve(
        "Effective rank of the features",
        (r"collapse/effective_rank", r"collapse/pooled_effective_rank"),
        "effective rank",
        ("collapse/effective_rank",),
        "collapse/effective_rank",
        ("health/effective_rank_limit", "health/pooled_effective_rank_limit"),
    ),
    Curve("Rank of pooled features", (), "rank, pooled by image", ("collapse/pooled_effective_rank",)),
    Curve(
        "Mean cosine of two samples",
        (r"collapse/mean_similarity", r"collapse/pooled_mean_similarity"),
        "cosine of two samples",
        ("collapse/mean_similarity",),
        "collapse/mean_similarity",
    ),
    Curve(
        "Accuracy of frozen features",
        (r"val/(knn|linear)_accuracy", r"probe/(?:.+_)?accuracy", r"val/accuracy", r"val/same_class_.+"),
        "probe accuracy",
        (r"val/(knn|linear)_accuracy", r"probe/(?:.+_)?accuracy", r"val/accuracy", r"val/same_class_.+"),
    ),
    Curve(
        "Retrieval between modalities",
        (r"alignment/[^/]+/recall_at_1_.+", r"alignment/recall_at_1_chance"),
        "recall at 1",
        (r"alignment/[^/]+/recall_at_1_.+",),
    ),
    Curve(
        "Quality of reconstruction (dB)",
        (r"Eval/Frame/(train|val)_psnr", r"Train/PSNR"),
        "PSNR, validation",
        ("Eval/Frame/val_psnr", "Train/PSNR"),
    ),
    Curve(
        "Similarity to the frozen encoder",
        (r"Eval/Frame/(train|val)_clip_sim",),
        "similarity, validation",
        ("Eval/Frame/val_clip_sim",),
        "Eval/Frame/val_clip_sim",
    ),
    Curve(
        "Cosine of prediction and target",
        (r"prediction/level\d+_cosine_sim_mean", r"prediction/h\d+_cosine_similarity_mean"),
        "cosine to target",
        ("prediction/level0_cosine_sim_mean", "prediction/h0_cosine_similarity_mean"),
    ),
    Curve(
        "Distance of the teacher (relative)",
        (r"ema/relative_divergence", r"ema/weight_distance"),
        "teacher's distance",
        ("ema/relative_divergence", "ema/weight_distance"),
    ),
    Curve(
        "Gradient norm",
        (
            r"gradient/global_norm_before_clip",
            r"gradient/global_norm_after_clip",
            r"Train/Gradients/total_norm",
            r"gradients/global_norm",
        ),
        "gradient norm",
        ("gradient/global_norm_before_clip", "gradients/global_norm", "Train/Gradients/total_norm"),
    ),
    Curve(
        "Clipped steps (%)",
        (r"gradient/clipping_percentage_window",),
        "clipped steps",
        ("gradient/clipping_percentage_window", "gradient/clipping_percentage"),
    ),
    Curve(
        "Learning rate",
        (r"learning_rate/base_lr",),
        "learning rate",
        ("learning_rate/base_lr", "train/lr", "Train/learning_rate"),
    ),
    Curve("Size of an update against its weights", (r"update/.+_ratio",)),
    Curve(
        "Samples per second, whole job",
        (r"performance/samples_per_second",),
        "samples/s, whole job",
        ("performance/samples_per_second",),
    ),
    Curve(
        "Speed of the slowest rank",
        (r"performance/straggler_score",),
        "slowest rank's speed",
        ("performance/straggler_score",),
        "performance/straggler_score",
    ),
    Curve(
        "Memory (GB)",
        (r"performance/gpu_memory_allocated_gb", r"system/gpu\d+_memory_allocated_gb", r"system/ram_gb"),
        "memory",
        ("performance/gpu_memory_allocated_gb", "system/ram_gb"),
    ),
)


@dataclass(frozen=True)
class Number:
    """Hold a headline number: first and last value, and how the catalog words its healthy range."""

    label: str
    tag: str
    first: float
    last: float
    unit: str
    limits: Limits | None

    @property
    def limit(self) -> str:
        """Return the healthy side with the number worked out, "" where there is no such number."""
        return "" if self.limits is None else healthy_range(self.limits)


def headline_numbers(run: Run) -> list[Number]:
    """Return at most twelve numbers of a run."""
    tags = ((curve.label, curve.number(run)) for curve in CURVES)
    return [_number(run, label, tag) for label, tag in tags if tag][:MOST_NUMBERS]


def _number(run: Run, label: str, tag: str) -> Number:
    entry, points = catalog.find(tag), run.scalars[tag]
    unit = entry.unit if entry else ""
    return Number(label, tag, points[0][1], points[-1][1], unit, limits_of(tag, run.latest))


def _matching(run: Run, patterns: Iterable[str]) -> Iterator[str]:
    tags = sorted(run.scalars)
    return (tag for pattern in patterns for tag in tags if re.fullmatch(pattern, tag))
