"""Entries of several modalities: their losses, their embeddings, and how well they match."""

from __future__ import annotations

from functools import partial

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.catalog.limits import NOTHING

_loss = partial(Entry, source="S3", dashboard="multimodal_training")
_embedding = partial(Entry, source="S3", dashboard="multimodal_embeddings")
_optimization = partial(Entry, source="S3", dashboard="multimodal_optimization")
_alignment = partial(Entry, source="S3", dashboard="multimodal_alignment", family="representations")

MODALITIES = (
    _loss(
        "loss/train/{name}",
        "training loss {name}",
        "One term of the training loss, mean over all samples of all ranks: total, of two modalities, or of "
        "the global embedding with each modality (global_modal).",
        healthy="falls steadily; a plateau from the start is a pair that does not learn",
    ),
    _loss(
        "loss/train/epoch_mean",
        "training loss of the epoch, mean",
        "Mean of the total loss over the epoch's steps, each that of the global batch.",
        healthy="falls from epoch to epoch",
    ),
    _loss(
        "loss/train/epoch_std",
        "training loss of the epoch, scatter",
        "Standard deviation of the total loss over the epoch's steps, each that of the global batch.",
        healthy="small against the mean once the first epoch is over",
        deviation="over the losses of the whole job's batches; one rank's batches scatter more",
    ),
    _loss(
        "loss/val/{name}",
        "validation loss {name}",
        "The same term on held-out samples.",
        healthy="falls with loss/train; rising while that falls is overfitting",
    ),
    _embedding(
        "embeddings/{name}/mean",
        "mean of the embeddings of {name}",
        "Mean of all elements of the embeddings, before normalisation.",
        healthy="near 0",
    ),
    _embedding(
        "embeddings/{name}/std",
        "spread of the embeddings of {name}",
        "Standard deviation over samples for each dimension, mean over dimensions.",
        healthy="holds; falling towards 0 is collapse",
        deviation="the sketch takes one std over everything, which stays high for an encoder that is blind "
        "to its input",
    ),
    _embedding(
        "embeddings/{name}/norm",
        "norm of the embeddings of {name}",
        "L2 norm of an embedding before normalisation, mean over samples.",
        healthy="stable; towards 0 is collapse",
    ),
    _embedding(
        "embeddings/nonfinite",
        "nonfinite embeddings",
        "Embeddings of any modality with a NaN or an infinity since the last log.",
        healthy="0",
        bounds=NOTHING,
        deviation="added",
    ),
    _optimization(
        "optimization/lr", "learning rate", "Learning rate of the first parameter group, under this name too."
    ),
    _optimization(
        "optimization/grad_norm",
        "gradient norm",
        "Global L2 norm of the gradients before clipping, under this name too.",
        healthy="stable; near 0 vanishing, above 100 exploding",
    ),
)

SAMPLES = (
    Entry(
        "samples/pictures",
        "held-out samples",
        "Pictures of the first held-out samples.",
        source="S3",
        kind="image",
        family="figures",
    ),
    Entry(
        "samples/captions",
        "captions and what they find",
        "Captions of the same samples, and that of the most similar sample in each other modality.",
        source="S3",
        kind="text",
        family="figures",
        healthy="captions of one row say the same",
    ),
    Entry(
        "val/same_class_{a}_to_{b}",
        "nearest neighbour of the same class, {a} to {b}",
        "How often the held-out sample most similar in the other modality has the same label.",
        healthy="rises far above one over the number of classes",
        deviation="added: where captions name the class alone, no single sample can be found again",
        dashboard="multimodal_alignment",
    ),
)

ALIGNMENT = (
    _alignment(
        "alignment/{a}_vs_{b}/diagonal_similarity",
        "similarity of right pairs, {a} and {b}",
        "Mean cosine between the two embeddings of the same sample, over all samples of all ranks.",
        healthy="rises well above mean_similarity",
    ),
    _alignment(
        "alignment/{a}_vs_{b}/mean_similarity",
        "similarity of all pairs, {a} and {b}",
        "Mean cosine over ALL pairs of samples of all ranks: (sum a) . (sum b) / n^2 on unit rows, exact.",
        healthy="falls towards 0; near diagonal_similarity nothing is told apart",
        deviation="the sketch averages one rank's batch",
    ),
    _alignment(
        "alignment/{a}_vs_{b}/modality_gap",
        "gap between {a} and {b}",
        "Distance between the mean unit embeddings of the two modalities.",
        source="arXiv 2203.02053",
        healthy="small; about 1 and more means two cones apart, which retrieval may survive",
        deviation="added",
    ),
    _alignment(
        "alignment/{a}_vs_{b}/diagonal_contrast",
        "contrast of the diagonal, {a} and {b}",
        "(mean of the diagonal - mean of the rest) / std of the rest, of the sample's similarity matrix.",
        unit="standard deviations",
        healthy="above 1; within 3 / sqrt(alignment/sample_pairs) of 0 there is no diagonal at all",
        deviation="added: diagonal structure as a number",
    ),
    _alignment(
        "alignment/{a}_vs_{b}/recall_at_{i}_{from}_to_{to}",
        "recall at {i}, {from} to {to}",
        "How often a sample's own embedding is among the i most similar ones of the other modality, in a "
        "uniform sample over all ranks; of equal ones each is as likely to come first.",
        healthy="rises above alignment/recall_at_{i}_chance; samples that mean the same share its place",
        deviation="added",
    ),
    _alignment(
        "alignment/{a}_vs_{b}/similarity_matrix",
        "similarity matrix, {a} and {b}",
        "Cosines of a uniform sample over all ranks, rows a, columns b: red 1, white 0, blue -1.",
        kind="image",
        dashboard="",
        healthy="a red diagonal on a pale ground",
    ),
    _alignment(
        "alignment/recall_at_{i}_chance",
        "recall at {i} of a guess",
        "i over the number of sampled pairs.",
        deviation="added",
    ),
    _alignment("alignment/num_pairs", "samples compared", "Samples of all ranks behind the exact numbers."),
    _alignment("alignment/sample_pairs", "samples drawn", "Samples behind recall, contrast and matrix."),
    _alignment(
        "alignment/nonfinite",
        "nonfinite similarities",
        "Right pairs whose cosine is NaN or infinite.",
        healthy="0",
        bounds=NOTHING,
        deviation="added",
    ),
)
