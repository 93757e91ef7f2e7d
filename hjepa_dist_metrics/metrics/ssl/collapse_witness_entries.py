"""Catalog entries of numbers that distinguish an offset, dead features and duplicates from collapse."""

from __future__ import annotations

from functools import partial

from hjepa_dist_metrics.catalog.entry import Entry

_witness = partial(Entry, dashboard="collapse", family="representations")

WITNESSES = (
    _witness(
        "collapse/rankme_centered",
        "RankMe about the mean",
        "exp of the entropy of the normalised singular values of the features about their mean. It does not "
        "fall where all features share a large mean, to which collapse/rankme is blind.",
        unit="dimensions",
        healthy="high, and not falling; far above collapse/rankme the features share a mean",
    ),
    _witness(
        "collapse/mean_share",
        "share of the mean in the second moment",
        "n |mean|^2 / sum |x|^2 of the features as they are: what part of their size all rows share.",
        healthy="well below 1; near 1 all rows lie about one offset: a collapse only where the rank about "
        "the mean is low too",
    ),
    _witness(
        "collapse/centered_similarity",
        "mean cosine of two samples about the mean",
        "Mean cosine of two rows of a uniform sample of 512 unit rows, about the sample's mean.",
        healthy="near 0; well above it most rows are one point and few lie apart",
    ),
    _witness(
        "collapse/dead_features",
        "dead features",
        "Features whose standard deviation is below 1 % of the root of the mean variance.",
        unit="dimensions",
        healthy="0; D where all rows are the same",
    ),
    _witness(
        "collapse/duplicate_share",
        "share of duplicates",
        "Share of a uniform sample of 512 unit rows that have a twin in it: a row nearer than a thousandth "
        "of the usual distance of two rows.",
        healthy="near 0; towards 1 the encoder has few outputs, or the data repeats",
    ),
    _witness(
        "collapse/neighbor_distance",
        "distance to the nearest sample",
        "Median over a uniform sample of 512 unit rows of the distance to the nearest other one, over the "
        "root of the mean squared distance of two.",
        healthy="about n^(-1/rank); far below it samples lie in clusters",
    ),
    _witness(
        "collapse/rms_norm",
        "size of the features",
        "Root of the mean squared norm of the rows as they are.",
        healthy="of one order of magnitude; growing or shrinking without end nothing holds it",
    ),
)
