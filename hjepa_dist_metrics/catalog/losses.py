"""Entries of the loss and its stability."""

from __future__ import annotations

from functools import partial

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.catalog.limits import NOTHING

_loss = partial(Entry, source="S0 1.1", dashboard="loss")
_stability = partial(Entry, source="S0 5.3", dashboard="stability")

LOSS = (
    _loss(
        "loss/total",
        "total loss",
        "Weighted sum of the levels' losses, mean over all samples of all ranks.",
        healthy="falls, then flattens; a fall alone proves little: read it beside collapse/effective_rank",
    ),
    _loss(
        "loss/h{i}",
        "loss of level {i}",
        "Unweighted loss of hierarchy level i (0 is the finest), mean over all samples of all ranks.",
        healthy="each level falls; a level that never does is too hard or broken",
    ),
    _loss(
        "loss/unweighted",
        "unweighted loss",
        "Mean of the levels' losses without the hierarchy weights: comparable between weightings.",
        healthy="falls with loss/total",
    ),
    _loss(
        "loss/contribution_h{i}",
        "share of level {i} in the total loss",
        "w_i * loss_i / sum_j(w_j * loss_j) * 100.",
        unit="%",
        healthy="the levels add up to 100; one far above 90 leaves the others untrained",
        deviation="the sketch divides the bare level loss by the total and leaves the weights out, "
        "so that its shares do not add up to 100",
    ),
    _loss(
        "loss/convergence_rate_h{i}",
        "speed at which level {i} converges",
        "Relative change of the level's loss per step, over the window between two logs.",
        unit="1/step",
        healthy="negative while the level learns, near 0 once it has converged",
    ),
    _loss(
        "loss/convergence_rate",
        "speed of convergence",
        "Relative change of the total loss per step, over the window between two logs.",
        unit="1/step",
        healthy="negative while learning, near 0 at the end",
    ),
    _loss(
        "loss/variance",
        "variance term",
        "VICReg's variance term where the objective has one, mean over all samples of all ranks.",
        source="arXiv 2105.04906",
        healthy="falls towards 0",
    ),
    _loss(
        "loss/covariance",
        "covariance term",
        "VICReg's covariance term where the objective has one, mean over all samples of all ranks.",
        source="arXiv 2105.04906",
        healthy="small",
    ),
    _loss(
        "loss/nonfinite",
        "nonfinite losses",
        "How many losses were NaN or infinite since the last log, on all ranks.",
        healthy="0",
        bounds=NOTHING,
        deviation="added",
    ),
    _loss(
        "loss/first_nonfinite_level",
        "first level with a nonfinite loss",
        "Number of the finest level whose loss was NaN or infinite; written only when there was one.",
        healthy="absent",
        deviation="added",
    ),
)

STABILITY = (
    _stability(
        "stability/loss_smoothness",
        "scatter of the loss",
        "Standard deviation of the total loss over the last 50 steps.",
        healthy="small against the loss, and falling",
    ),
    _stability(
        "stability/val_train_loss_ratio",
        "validation loss over training loss",
        "Validation loss divided by the training loss of the same time.",
        healthy="near 1; rising steadily is overfitting",
    ),
    _stability(
        "stability/loss_trend_slope",
        "slope of the loss",
        "Slope, at the newest point, of a quadratic fitted to a window of the loss.",
        unit="1/step",
        healthy="negative or near 0",
        deviation="the sketch fits the whole history each time and reports the slope at its first step",
    ),
    _stability(
        "stability/loss_max_spike",
        "largest over smallest loss",
        "Largest over smallest loss of the steps since the last log and the 50 before.",
        healthy="near 1; explodes near a loss of 0, void for negative ones: see stability/spike_score",
    ),
    _stability(
        "stability/spike_score",
        "robust spike score",
        "(loss - median) / (1.4826 * MAD) over the 50 losses before, without spikes and nonfinite values.",
        unit="robust standard deviations",
        healthy="within 6; above that the step is a spike",
        deviation="added: max/min explodes near 0",
    ),
    _stability(
        "stability/worst_spike_score",
        "worst spike score",
        "Largest spike score of the steps since the last log and the 50 before.",
        unit="robust standard deviations",
        healthy="within 6",
        deviation="added",
    ),
    _stability(
        "stability/spike_count",
        "spikes",
        "Steps whose spike score passed 6, of those since the last log and the 50 before.",
        unit="steps",
        healthy="0, or a few early ones",
        deviation="added",
    ),
    _stability(
        "stability/nonfinite_steps",
        "nonfinite steps",
        "Steps whose loss was NaN or infinite, of those since the last log and the 50 before; they are left "
        "out of the rest.",
        unit="steps",
        healthy="0",
        bounds=NOTHING,
        deviation="added",
    ),
)

SHORT_LIST = (
    Entry(
        "train/loss", "training loss", "The total loss, under its short name.", source="S1", healthy="falls"
    ),
    Entry("train/lr", "learning rate", "Learning rate of the first parameter group.", source="S1"),
    Entry(
        "train/ema_momentum",
        "EMA momentum",
        "Momentum of the target encoder's moving average.",
        source="S1",
        healthy="rises to its end value along the schedule",
    ),
    Entry(
        "train_epoch/loss",
        "training loss of the epoch",
        "Mean of the total loss over all samples of the epoch.",
        source="S1",
        healthy="falls from epoch to epoch",
    ),
    Entry(
        "val/loss",
        "validation loss",
        "Total loss on held-out samples, each counted once though samplers pad.",
        source="S1",
        healthy="falls with train_epoch/loss",
        dashboard="loss",
    ),
    Entry(
        "val/knn_accuracy",
        "kNN accuracy of frozen features",
        "Accuracy of a nearest-neighbour probe on pooled target features with few labels a class.",
        healthy="rises above its value before training: the loss can fall while this does too",
        dashboard="loss",
    ),
    Entry(
        "val/{name}",
        "validation number",
        "A number that the training script measures on held-out samples.",
        source="S1",
    ),
)
