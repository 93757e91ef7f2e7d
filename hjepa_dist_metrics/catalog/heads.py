"""Entries of models with several heads that reconstruct images: losses, gradients, parameters, frames.

The head names are the user's: `pixel` and `clip` in the document, whose tags these patterns cover.
"""

from __future__ import annotations

from functools import partial

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.catalog.limits import (
    NOTHING,
    psnr_gap_limits,
    similarity_gap_limits,
    similarity_limits,
)

_training = partial(Entry, source="S2 1", dashboard="dual_head_loss_breakdown")
_batch = partial(Entry, source="S2 3")
_gradient = partial(Entry, source="S2 2", dashboard="dual_head_gradients")
_frame = partial(Entry, source="S2 5", dashboard="dual_head_evaluation", family="representations")
_spread = partial(Entry, source="S2 6, 7", dashboard="dual_head_statistics", family="representations")
_quantile = partial(Entry, source="S2 9", dashboard="dual_head_distributions", family="representations")
_info = partial(Entry, source="S2 10", family="representations")

HEADS = (
    Entry(
        "Train/PSNR",
        "PSNR of the epoch",
        "PSNR of every training patch as it was trained on, mean over the epoch and all ranks.",
        unit="dB",
        source="S2 1",
        dashboard="dual_head_overview",
        healthy="rises steadily, without jumps",
    ),
    Entry(
        "Train/learning_rate",
        "learning rate",
        "Learning rate of the first parameter group.",
        source="S2 1",
        dashboard="dual_head_overview",
        healthy="follows the schedule",
        deviation="written at every log, not once an epoch",
    ),
    _training(
        "Train/Loss/{name}_loss",
        "loss {name}",
        "Loss of one head, mean over all samples of the epoch on all ranks; 0 in its warm-up.",
        healthy="falls; one that is switched on after a warm-up falls from there",
    ),
    _training(
        "Train/Loss/total_loss",
        "total loss of the epoch",
        "Sum of the heads' losses times their weights, mean over the epoch.",
        healthy="falls steadily, but for a step where a head is switched on; wild swings are an alert",
    ),
    _training(
        "Train/Loss/{name}_loss_weighted",
        "weighted loss {name}",
        "The head's loss times its weight: what it adds to the total loss.",
        healthy="0 in the warm-up, then neither negligible nor most of the total",
    ),
    _training(
        "Train/Loss/{name}_ratio",
        "ratio of losses {name}",
        "Loss of the first head over that of another, before weights; not written while the other is 0.",
        healthy="steady; its size depends on the losses' units",
    ),
    _training(
        "Train/{name}_loss_active",
        "loss {name} switched on",
        "1 where the head's loss has a weight in this epoch, 0 in its warm-up.",
        healthy="0 for the warm-up, then 1",
    ),
    _gradient(
        "Train/Gradients/total_norm",
        "gradient norm",
        "L2 norm of the gradient of the whole model before clipping, mean over the epoch's steps.",
        healthy="between 0.1 and 10; below 0.001 vanishes, above 100 explodes",
    ),
    _gradient(
        "Train/Gradients/{module}_norm",
        "gradient norm of {module}",
        "The same for one part of the model: a head, or the decoder that they share.",
        healthy="of one order of magnitude over the parts; 0 for a head in its warm-up",
    ),
    _gradient(
        "Train/Gradients/{name}_ratio",
        "ratio of gradients {name}",
        "Gradient norm of one head over that of another; not written while the other is 0.",
        healthy="between 0.1 and 10: the heads learn at similar rates",
    ),
    _batch(
        "Train_Batch/PSNR",
        "PSNR of the batch",
        "PSNR of the patches since the last log, mean over all ranks.",
        unit="dB",
        healthy="noisy, rising",
        deviation="over the batches since the last log; log at every step for single batches",
    ),
    _batch(
        "Train_Batch/{name}_loss",
        "loss {name} of the batch",
        "Loss of one head, or the total, over the batches since the last log on all ranks.",
        healthy="noisy, falling",
        deviation="over the batches since the last log; log at every step for single batches",
    ),
    Entry(
        "Model/Params/{module}_mean",
        "mean of the parameters of {module}",
        "Mean over all elements of a head's parameters.",
        source="S2 4",
        family="system",
        healthy="stable; steady drift saturates",
    ),
    Entry(
        "Model/Params/{module}_std",
        "spread of the parameters of {module}",
        "Standard deviation (divided by n) over all elements of a head's parameters.",
        source="S2 4",
        family="system",
        healthy="stable",
    ),
)

FRAMES = (
    _frame(
        "Eval/Frame/{name}_psnr",
        "PSNR of {name} frames",
        "-10 log10 MSE of each patch, mean over a frame's patches wherever they lie, mean over frames.",
        unit="dB",
        healthy="rises on both splits, a little lower on validation frames",
        deviation="a perfect patch counts as 100 dB and not as infinite",
    ),
    _frame(
        "Eval/Frame/{name}_sim",
        "similarity of {name} frames",
        "Cosine of a patch's predicted embedding with the frozen encoder's, averaged as the PSNR.",
        healthy="near 1",
    ),
    _frame(
        "Eval/Frame/val_{name}_sim",
        "similarity {name} of validation frames",
        "Cosine of a patch's predicted embedding with the frozen encoder's, averaged as the PSNR.",
        healthy="above 0.85; below 0.7 the head has not learned the meaning",
        limits=similarity_limits,
    ),
    _frame(
        "Eval/Frame/{name}_dist",
        "distance of {name} frames",
        "1 - similarity.",
        healthy="near 0",
    ),
    _frame(
        "Eval/Gap/psnr_gap",
        "PSNR gap",
        "PSNR of training frames minus that of validation frames.",
        unit="dB",
        healthy="below 3 and stable; above 5 overfits",
        limits=psnr_gap_limits,
    ),
    _frame(
        "Eval/Gap/{name}_gap",
        "gap of {name}",
        "The same for another quality.",
        healthy="small and stable",
    ),
    _frame(
        "Eval/Gap/{name}_sim_gap",
        "similarity gap of {name}",
        "Similarity on training frames minus that on validation frames.",
        healthy="below 0.1 and stable",
        limits=similarity_gap_limits,
    ),
    _spread(
        "Eval/PSNR_Stats/{name}_std",
        "spread of PSNR over {name} frames",
        "Standard deviation (divided by n) over the frames of the whole job.",
        unit="dB",
        healthy="low: frames are reconstructed alike",
    ),
    _spread(
        "Eval/PSNR_Stats/{name}_min",
        "worst PSNR of {name} frames",
        "Smallest PSNR of a frame.",
        unit="dB",
        healthy="rises with the mean",
    ),
    _spread(
        "Eval/PSNR_Stats/{name}_max",
        "best PSNR of {name} frames",
        "Largest PSNR of a frame.",
        unit="dB",
        healthy="high",
    ),
    _spread(
        "Eval/Patch/{name}_std",
        "spread of {name} over patches",
        "Standard deviation (divided by n) over all patches of all ranks.",
        healthy="low; higher than over frames, since places differ",
    ),
    _spread(
        "Eval/Patch/{name}_nonfinite",
        "nonfinite patches of {name}",
        "Patches whose quality is NaN.",
        unit="patches",
        healthy="0",
        bounds=NOTHING,
        deviation="added",
    ),
    _quantile(
        "Eval/Quantile/{name}_p10",
        "lower decile of {name} over frames",
        "A tenth of the frames lie below.",
        healthy="rises with the median",
        deviation="added: charts cannot draw histograms",
    ),
    _quantile(
        "Eval/Quantile/{name}_p50",
        "median of {name} over frames",
        "Half of the frames lie below.",
        healthy="near the mean",
        deviation="added: charts cannot draw histograms",
    ),
    _quantile(
        "Eval/Quantile/{name}_p90",
        "upper decile of {name} over frames",
        "A tenth of the frames lie above.",
        healthy="rises with the median",
        deviation="added: charts cannot draw histograms",
    ),
    Entry(
        "Eval/Histogram/{name}_distribution",
        "distribution of {name} over frames",
        "Each frame counted once, over edges that stay: 0 to 60 dB for PSNR, -1 to 1 for similarities.",
        source="S2 9",
        kind="histogram",
        family="representations",
        healthy="narrow, at high values, alike on both splits",
    ),
    Entry(
        "Eval/Image/{name}",
        "a frame, true and reconstructed ({name})",
        "The frame in the middle of the split: true above, reconstructed below.",
        source="S2 5",
        kind="image",
        family="figures",
        healthy="blurred at first, then the same picture; patch borders vanish",
        deviation="added",
    ),
    _info(
        "Eval/Info/num_{name}_frames",
        "number of {name} frames",
        "Frames seen over all ranks.",
        unit="frames",
        healthy="constant",
    ),
    _info(
        "Eval/Info/num_{name}_patches",
        "number of {name} patches",
        "Patches seen over all ranks, each once.",
        unit="patches",
        healthy="constant, frames times patches a frame",
    ),
)
