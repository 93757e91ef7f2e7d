"""Entries of predictions against targets."""

from __future__ import annotations

from functools import partial

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.catalog.limits import NOTHING

_prediction = partial(Entry, source="S0 3.1", dashboard="prediction", family="representations")
_figure = partial(Entry, kind="image", family="figures")
_VALID = "over the masked, unpadded tokens of all ranks."

PREDICTION = (
    _prediction(
        "prediction/level{i}_cosine_sim_mean",
        "cosine of prediction and target, level {i}",
        f"Mean cosine between predicted and target token {_VALID}",
        healthy="rises towards 1; near 1 at once, with collapse/mean_similarity near 1, is collapse",
    ),
    _prediction(
        "prediction/level{i}_cosine_sim_std", "its spread", f"Standard deviation of the cosine {_VALID}"
    ),
    _prediction("prediction/level{i}_cosine_sim_min", "its smallest", f"Smallest cosine {_VALID}"),
    _prediction("prediction/level{i}_cosine_sim_max", "its largest", f"Largest cosine {_VALID}"),
    _prediction(
        "prediction/level{i}_normalized_mse",
        "squared error of directions, level {i}",
        f"Mean squared difference of the L2-normalised features, (2 - 2 cosine) / D, {_VALID}",
        healthy="falls",
    ),
    _prediction(
        "prediction/level{i}_l2_distance",
        "distance of prediction and target, level {i}",
        f"L2 norm of the difference, mean {_VALID}",
        healthy="falls against hierarchy/level{i}_feat_norm",
    ),
    _prediction(
        "prediction/level{i}_cka",
        "CKA of prediction and target, level {i}",
        f"Linear CKA between predicted and target tokens {_VALID}",
        source="arXiv 1905.00414",
        healthy="rises towards 1",
    ),
    _prediction(
        "prediction/level{i}_num_tokens", "tokens compared, level {i}", "Valid tokens.", unit="tokens"
    ),
    _prediction(
        "prediction/level{i}_similarity_histogram",
        "distribution of the cosine, level {i}",
        f"Counts of the cosine between prediction and target {_VALID}",
        kind="histogram",
        family="histograms",
        dashboard="",
    ),
    _prediction(
        "prediction/level{i}_nonfinite",
        "nonfinite tokens, level {i}",
        f"NaN and infinite cosines {_VALID}",
        healthy="0",
        bounds=NOTHING,
    ),
    _prediction(
        "prediction/level{i}_extreme_patches",
        "hardest and easiest patches, level {i}",
        f"Image, patch and cosine of the tokens that match worst and best {_VALID}",
        kind="text",
        dashboard="",
        healthy="different images; one image again and again is a bad sample",
    ),
    _figure(
        "prediction/most_difficult_patches",
        "hardest patches",
        "Crops of the patches with the lowest cosine, of all ranks.",
        source="S0 3.1",
    ),
    _figure(
        "prediction/easiest_patches",
        "easiest patches",
        "Crops of the patches with the highest cosine, of all ranks.",
        source="S0 3.1",
    ),
    _figure(
        "prediction/level{i}_gram_{name}",
        "Gram matrix of level {i}",
        "Correlation between features of the predictions or the targets.",
        source="S0 3.2",
        healthy="dark off the diagonal; bright blocks are redundant features",
    ),
    _figure(
        "patches/similarity_heatmap",
        "prediction quality over the image",
        "Cosine between prediction and target for each patch of one image.",
        source="S0 6.2",
        healthy="without places that are dark in every image",
    ),
    _figure(
        "embeddings/{name}_pred_vs_target",
        "map of predictions and targets",
        "Both projected to two dimensions (PCA by default), coloured by level.",
        source="S0 6.1",
        healthy="the two clouds lie on each other and are spread out",
    ),
    Entry(
        "embeddings/{name}",
        "embedding projector",
        "Vectors for TensorBoard's projector.",
        source="S0 6.1",
        kind="embedding",
        family="figures",
    ),
)
