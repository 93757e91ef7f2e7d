"""Catalog entries of representational collapse, for the whole run and for each named stream."""

from __future__ import annotations

import dataclasses
from functools import partial

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.catalog.limits import (
    NOTHING,
    effective_rank_limits,
    mean_similarity_limits,
    mean_std_limits,
    rankme_limits,
)
from hjepa_dist_metrics.metrics.ssl.collapse_witness_entries import WITNESSES

_collapse = partial(Entry, dashboard="collapse", family="representations")

_WHOLE = (
    _collapse(
        "collapse/mean_std_per_dim",
        "spread of normalised features",
        "Standard deviation over all rows of each L2-normalised feature, mean over features.",
        healthy="near 1/sqrt(D); below 0.3/sqrt(D) is suspicious, below 0.03/sqrt(D) collapse",
        limits=mean_std_limits,
        deviation="often judged by a bound of 0.01 at any D; no encoder exceeds 1/sqrt(D)",
    ),
    _collapse(
        "collapse/min_std_per_dim",
        "smallest spread of a normalised feature",
        "The same, smallest over features.",
        healthy="above 0; at 0 a feature is dead",
        deviation="often judged by a fixed bound of 0.001, which does not depend on D",
    ),
    _collapse(
        "collapse/effective_rank",
        "effective rank (centred unit rows)",
        "exp of the entropy of the normalised eigenvalues of the L2-normalised features' covariance, exact "
        "over all rows of all ranks. Constant features have rank 1. Singular values of uncentred features, "
        "as in collapse/rankme, give two to three times as much.",
        unit="dimensions",
        healthy="above a quarter of min(D, n - 1); below a twentieth is collapse",
        limits=effective_rank_limits,
        deviation="often from 1,000 rows of one rank and expected near D, which n rows cannot reach",
    ),
    _collapse(
        "collapse/rankme",
        "RankMe",
        "exp of the entropy of the normalised singular values of the uncentred features. Where features "
        "share a large mean it reads low without any collapse: see collapse/rankme_centered.",
        unit="dimensions",
        source="arXiv 2210.02885",
        healthy="high, and not falling; compares checkpoints of one run",
        limits=rankme_limits,
    ),
    _collapse(
        "collapse/participation_ratio",
        "participation ratio",
        "trace(C)^2 / |C|_F^2: how many directions carry the variance.",
        unit="dimensions",
        healthy="about 1 / (1/n + 1/D) at best",
    ),
    _collapse(
        "collapse/stable_rank",
        "stable rank",
        "Sum of the covariance's eigenvalues over the largest.",
        unit="dimensions",
        healthy="well above 1",
    ),
    _collapse(
        "collapse/alpha_req",
        "decay of the spectrum",
        "-slope of log eigenvalue on log rank over ranks D/16 to D/2; absent where one of those is zero.",
        source="arXiv 2202.05808",
        healthy="about 1; far above 1 few directions count, far below 1 noise does",
    ),
    _collapse(
        "collapse/alpha_req_r2",
        "fit of the decay",
        "R^2 of the line whose slope is collapse/alpha_req.",
        source="arXiv 2202.05808",
        healthy="above 0.9, or collapse/alpha_req means little",
    ),
    _collapse(
        "collapse/mean_similarity",
        "mean cosine of two samples",
        "Mean cosine over ALL pairs of rows of the whole job: (|sum xhat|^2 - n) / (n(n-1)), exact. A row of "
        "zeros has the cosine 0 with any other; where all rows are zeros it is 1, as of any constant rows.",
        healthy="below 0.5; above 0.9 is collapse to a point",
        limits=mean_similarity_limits,
        deviation="often computed from 1,000 rows of one rank",
    ),
    _collapse(
        "collapse/std_similarity",
        "spread of the cosine of two samples",
        "Standard deviation of the cosine over ALL pairs of rows of the whole job, exact.",
        healthy="near sqrt(1/D) where the mean cosine is near 0; 0 where all rows are the same",
    ),
    _collapse(
        "collapse/max_similarity",
        "largest cosine of two samples",
        "Largest cosine in a uniform sample of 512 rows over all ranks.",
        healthy="below 1; 1 means duplicated samples",
    ),
    _collapse(
        "collapse/uniformity",
        "uniformity",
        "log of the mean of exp(-2 |xhat - yhat|^2) over the sample's pairs.",
        source="arXiv 2005.10242",
        healthy="towards -4 + 4/D; 0 is collapse to a point",
    ),
    _collapse(
        "collapse/alignment",
        "alignment of prediction and target",
        "Mean of |p - t|^2 of the L2-normalised prediction and target, 2 - 2 cosine.",
        source="arXiv 2005.10242",
        healthy="falls; 0 together with uniformity 0 is collapse",
        deviation="the paper's is of positive pairs, two views of a sample: see collapse/views_alignment",
    ),
    _collapse(
        "collapse/vicreg_variance",
        "VICReg variance term",
        "Mean of relu(1 - sqrt(variance + 1e-4)) over features.",
        source="arXiv 2105.04906",
        healthy="towards 0; 1 is collapse",
    ),
    _collapse(
        "collapse/vicreg_covariance",
        "VICReg covariance term",
        "Sum of the squared off-diagonal covariances over D.",
        source="arXiv 2105.04906",
        healthy="small; grows with redundant features",
    ),
    _collapse(
        "collapse/lidar",
        "LiDAR",
        "Effective rank of Sw^-1/2 Sb Sw^-1/2: directions in which images differ by more than their tokens "
        "scatter. Classes are images and members their tokens; collapse/views_lidar has augmented views.",
        unit="dimensions",
        source="arXiv 2312.04000",
        healthy="high, and not falling",
        limits=effective_rank_limits,
    ),
    _collapse(
        "collapse/between_within_ratio",
        "variance between over within images",
        "trace(Sb) / trace(Sw).",
        source="arXiv 2312.04000",
        healthy="not near 0, where tokens depend on their place alone and not on their image",
    ),
    _collapse(
        "collapse/sigreg",
        "distance from a Gaussian",
        "Epps-Pulley statistic over seeded random directions, 17 knots on [0, 3].",
        source="arXiv 2511.08544",
        healthy="1.05 for a standard Gaussian at any n",
    ),
    _collapse(
        "collapse/num_samples", "rows measured", "Rows of all ranks that these numbers are of.", unit="rows"
    ),
    _collapse(
        "collapse/num_features", "width of the features", "D, the width of the features.", unit="dimensions"
    ),
    _collapse(
        "collapse/is_constant",
        "constant features",
        "1 where all rows are the same, else 0.",
        healthy="0",
        bounds=NOTHING,
    ),
    _collapse(
        "collapse/nonfinite",
        "nonfinite rows",
        "Rows with NaN or infinity; the other numbers are NaN then.",
        healthy="0",
        bounds=NOTHING,
    ),
    _collapse(
        "collapse/similarity_histogram",
        "distribution of the cosine of two samples",
        "Counts of the cosine over the pairs of a uniform sample of rows over all ranks.",
        kind="histogram",
        family="histograms",
        dashboard="",
        healthy="a bell around 0; a peak at 1 is collapse",
    ),
    _collapse(
        "collapse/spectrum",
        "singular values",
        "Singular values by rank, on a logarithmic scale.",
        kind="image",
        family="figures",
        dashboard="",
        healthy="falls slowly; a cliff is the rank",
    ),
)


# Images share their mean token, and predictions the mean of what they cannot predict: no limit fits all.
_UNJUDGED = partial(_collapse, healthy="steady; compares runs of one model, and has no limit of its own")
_UNJUDGED_ENTRIES = (
    _UNJUDGED(
        "collapse/pooled_mean_similarity",
        "mean cosine of two images",
        "Mean cosine over ALL pairs of images, each the mean of its tokens.",
    ),
    _UNJUDGED(
        "collapse/{name}_pooled_mean_similarity",
        "mean cosine of two images of {name}",
        "Mean cosine over ALL pairs of images, each the mean of its tokens.",
    ),
    _UNJUDGED(
        "collapse/prediction{i}_mean_similarity",
        "mean cosine of two predictions of level {i}",
        "Mean cosine over ALL pairs of predicted tokens.",
    ),
)


def _named(entry: Entry) -> Entry:
    """Return the entry of the same number for a stream or level that the user named."""
    return dataclasses.replace(
        entry,
        pattern=entry.pattern.replace("collapse/", "collapse/{name}_", 1),
        title=f"{entry.title} of {{name}}",
    )


_SHORT = partial(Entry, family="representations")
_POOLED = "std over samples of each dimension, mean over dimensions"

_SHORT_LIST = tuple(
    entry
    for stream in ("context", "target")
    for entry in (
        _SHORT(
            f"train/{stream}_std",
            f"spread of the {stream} encoder's features",
            f"Sample-pooled features: {_POOLED}.",
            healthy="well above 0",
            deviation="often the std over [B, N*D], which is 1 even where all images have the same features",
        ),
        _SHORT(
            f"train/{stream}_norm",
            f"norm of the {stream} encoder's features",
            "L2 norm of the sample-pooled features, mean over all samples of all ranks.",
            healthy="steady, above 0",
        ),
        _SHORT(
            f"train/{stream}_rank",
            f"effective rank of the {stream} encoder's features",
            "Effective rank of the sample-pooled features of all ranks.",
            unit="dimensions",
            healthy="above a quarter of min(D, n - 1); below a twentieth is collapse",
            limits=effective_rank_limits,
            deviation="often expected to be near D, which n samples cannot reach",
        ),
    )
)

_BY_STREAM = (*_WHOLE, *WITNESSES)
ENTRIES = (*_BY_STREAM, *(_named(entry) for entry in _BY_STREAM), *_UNJUDGED_ENTRIES, *_SHORT_LIST)
