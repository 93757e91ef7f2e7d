"""Catalog entries of what no metric computes: validation, pictures, the sync, alerts, notes."""

from __future__ import annotations

from functools import partial

from hjepa_dist_metrics.catalog.entry import Entry

_sync = partial(Entry, dashboard="performance")
_optimization = partial(Entry, dashboard="multimodal_optimization")

ENTRIES = (
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
    ),
    Entry(
        "embeddings/{name}",
        "embedding projector",
        "Vectors for TensorBoard's projector.",
        kind="embedding",
        family="figures",
    ),
    _optimization(
        "optimization/grad_norm",
        "gradient norm",
        "Global L2 norm of the gradients before clipping, under this name too.",
        healthy="stable; near 0 vanishing, above 100 exploding",
    ),
    Entry(
        "samples/pictures",
        "held-out samples",
        "Pictures of the first held-out samples.",
        kind="image",
        family="figures",
    ),
    Entry(
        "samples/captions",
        "captions and what they find",
        "Captions of the same samples, and that of the most similar sample in each other modality.",
        kind="text",
        family="figures",
        healthy="captions of one row say the same",
    ),
    Entry(
        "val/same_class_{a}_to_{b}",
        "nearest neighbour of the same class, {a} to {b}",
        "How often the held-out sample most similar in the other modality has the same label.",
        healthy="rises far above one over the number of classes",
        dashboard="multimodal_alignment",
    ),
    _sync(
        "sync/rounds",
        "rounds of a sync",
        "Rounds of messages that the last sync took.",
        healthy="the logarithm of the number of ranks, 2 more at most",
    ),
    _sync("sync/bytes", "bytes of a sync", "Bytes that a rank sent in the last sync.", unit="B"),
    _sync("sync/seconds", "time of a sync", "Time of the last sync on the main process.", unit="s"),
    _sync("sync/wait_seconds", "wait in a sync", "Part of it until the last rank joined.", unit="s"),
    _sync("sync/slowest_rank", "last rank to arrive", "Number of the rank that arrived last.", unit="rank"),
    Entry(
        "health/score",
        "verdict",
        "1 for a healthy run, 0.5 for a warning, 0 for a failing one.",
        healthy="1",
        dashboard="health",
    ),
    Entry(
        "health/effective_rank_limit",
        "rank below which the judge suspects a collapse",
        "A share of what collapse/effective_rank has been for long, or of its start.",
        healthy="below collapse/effective_rank",
        dashboard="health",
        family="representations",
    ),
    Entry(
        "health/pooled_effective_rank_limit",
        "rank over images below which the judge suspects a collapse",
        "A share of what collapse/pooled_effective_rank has been for long, or of its start.",
        healthy="below collapse/pooled_effective_rank",
        dashboard="health",
        family="representations",
    ),
    Entry(
        "alerts/{rule}", "finding", "1 while the finding lasts, else 0.", healthy="0", dashboard="stability"
    ),
    Entry(
        "alerts/log",
        "log of alerts",
        "The findings, their evidence, cause and advice, and all that began.",
        kind="text",
    ),
    Entry("notes/{name}", "notes", "Text on the run: how to read it, its environment.", kind="text"),
    Entry("training/images/{name}", "training picture", "The same, in a group of its own.", kind="image"),
    Entry(
        "training/{name}",
        "training picture",
        "Pictures that the training script logs.",
        kind="image",
        family="figures",
    ),
)
