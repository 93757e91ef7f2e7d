"""Features in two dimensions: PCA, t-SNE, UMAP."""

from __future__ import annotations

import logging
from typing import Any, Literal, NamedTuple

import numpy as np

from hjepa_dist_metrics.errors import ConfigError, MissingExtraError
from hjepa_dist_metrics.figures.inputs import Floats

logger = logging.getLogger("hjepa_dist_metrics.figures")

Method = Literal["pca", "tsne", "umap"]


class Projection(NamedTuple):
    """Hold points [n, 2] and what the two axes are."""

    points: Floats
    x: str
    y: str
    title: str


def project(rows: Floats, method: Method = "pca", seed: int = 0) -> Projection:
    """Project rows [n, D] to two dimensions; the same rows and seed give the same points.

    "pca" keeps the two directions of largest variance, "tsne" (scikit-learn) and "umap" (umap-learn) keep
    neighbourhoods. Without umap-learn, "umap" says so and takes t-SNE. ConfigError for fewer than 3 rows or
    values that are not finite.
    """
    if len(rows) < 3 or not np.isfinite(rows).all():
        finite = int(np.isfinite(rows).all(axis=-1).sum())
        raise ConfigError(f"a projection needs 3 or more rows, all finite, got {len(rows)}, {finite} finite")
    if method == "pca":
        return _pca(rows)
    if method == "tsne":
        return _tsne(rows, seed, "t-SNE")
    if method == "umap":
        return _umap(rows, seed)
    raise ConfigError(f"method is {method!r}; allowed: 'pca', 'tsne', 'umap'")


def _pca(rows: Floats) -> Projection:
    """Return the leading principal components, each with its largest loading positive."""
    centred = rows - rows.mean(axis=0)
    if rows.shape[1] == 1:
        centred = np.hstack([centred, np.zeros_like(centred)])
    _, sigma, axes = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(axes[np.arange(2), np.abs(axes[:2]).argmax(axis=1)])
    share = 100 * sigma[:2] ** 2 / max(float((sigma**2).sum()), 1e-300)
    points = centred @ (axes[:2] * signs[:, None]).T
    return Projection(
        points, f"component 1 ({share[0]:.0f} % of variance)", f"component 2 ({share[1]:.0f} %)", "PCA"
    )


def _tsne(rows: Floats, seed: int, title: str) -> Projection:
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "figures", "t-SNE") from error
    perplexity = min(30.0, (len(rows) - 1) / 3)
    points = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(rows)
    return Projection(points.astype(np.float64), "t-SNE 1 (no unit)", "t-SNE 2 (no unit)", title)


def _umap(rows: Floats, seed: int) -> Projection:
    try:
        import umap
    except ImportError:
        logger.warning(
            "umap-learn is not installed (pip install 'hjepa-dist-metrics[umap]'): drawing t-SNE instead"
        )
        return _tsne(rows, seed, "t-SNE (UMAP is not installed)")
    reducer: Any = umap.UMAP(n_neighbors=min(15, len(rows) - 1), random_state=seed, n_jobs=1)
    points = np.asarray(reducer.fit_transform(rows), dtype=np.float64)
    return Projection(points, "UMAP 1 (no unit)", "UMAP 2 (no unit)", "UMAP")
