"""A nearest-neighbour probe of the frozen target encoder with few labels, and a map of images.

Both are the same at every world size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from hjepa_dist_metrics import ProcessContext
from hjepa_dist_metrics.figures.gather import gather_rows
from hjepa_dist_metrics.reference.data.images import ImageSet, ImageSplits, stack_images
from hjepa_dist_metrics.values import Embedding

Features: TypeAlias = npt.NDArray[np.float64]
Labels: TypeAlias = npt.NDArray[np.int64]

NEIGHBOURS, DRAWS, _CHUNK = 5, 5, 64
_STD_FLOOR = 1e-6
_MOST_POINTS = 500


def knn_predict(features: Features, labels: Labels, queries: Features, k: int = NEIGHBOURS) -> Labels:
    """Return the majority label of each query's k nearest rows by cosine; of a tie the smallest."""
    similarity = _unit(queries) @ _unit(features).T
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    votes = np.zeros((len(queries), int(labels.max()) + 1), dtype=np.int64)
    np.add.at(votes, (np.arange(len(queries))[:, None], labels[nearest]), 1)
    winners: Labels = votes.argmax(axis=1)
    return winners


def _unit(x: Features) -> Features:
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norm > 0, norm, 1.0)


def draw_labelled(labels: Labels, per_class: int, draw: int) -> Labels:
    """Return the positions of up to `per_class` samples of every class, drawn by `draw` alone."""
    rng = np.random.default_rng(draw)
    classes = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    return np.concatenate([rng.permutation(members)[:per_class] for members in classes])


def knn_accuracy(
    encode: Callable[[torch.Tensor], torch.Tensor],
    data: ImageSplits,
    *,
    labels_per_class: int = 10,
    context: ProcessContext | None = None,
) -> float | None:
    """Return the share of validation images whose class is found, averaged over 5 draws of the labelled
    images.

    `encode` maps images [B, C, H, W] to token features [B, N, D], such as `HJEPA.extract_features`. Features
    are averaged over tokens and standardised by the labelled images' statistics. The ranks of `context` share
    the images, and every rank gets the same result. None where the images have no classes.
    """
    if not data.class_names:
        return None
    train_labels = data.train.labels.numpy()
    draws = [draw_labelled(train_labels, labels_per_class, draw) for draw in range(DRAWS)]
    labelled = np.unique(np.concatenate(draws))
    everything = np.arange(len(data.val))
    where = context or ProcessContext.current()
    known = _encode_over_ranks(encode, data.train, labelled, where)
    queries = _encode_over_ranks(encode, data.val, everything, where)
    mean, std = known.mean(axis=0), known.std(axis=0) + _STD_FLOOR
    known, queries = (known - mean) / std, (queries - mean) / std
    truth = data.val.labels.numpy()
    hits = []
    for draw in draws:
        found = knn_predict(known[np.searchsorted(labelled, draw)], train_labels[draw], queries)
        hits.append(float((found == truth).mean()))
    return float(np.mean(hits))


def held_out_points(
    encode: Callable[[torch.Tensor], torch.Tensor], data: ImageSplits, context: ProcessContext
) -> Embedding:
    """Return pooled features of the first 500 held-out images, with their classes and pictures.

    `encode` maps images [B, C, H, W] to token features [B, N, D]. A collective call, the same on every rank.
    """
    chosen = np.arange(min(len(data.val), _MOST_POINTS))
    vectors = _encode_over_ranks(encode, data.val, chosen, context).astype(np.float32)
    classes = data.val.labels[: len(chosen)].tolist()
    labels = tuple(data.class_names[c] for c in classes) if data.class_names else ()
    return Embedding(vectors, labels, _pictures(stack_images(data.val, torch.from_numpy(chosen))))


def _encode_over_ranks(
    encode: Callable[[torch.Tensor], torch.Tensor],
    images: ImageSet,
    indices: Labels,
    context: ProcessContext,
) -> Features:
    """Return pooled features [len(indices), D]; chunks are fixed, so every world size gives the same bits."""
    chunks = [torch.from_numpy(indices[i : i + _CHUNK]) for i in range(0, len(indices), _CHUNK)]
    shares = [range(rank, len(chunks), context.world_size) for rank in range(context.world_size)]
    own = [_pooled(encode, stack_images(images, chunks[i])) for i in shares[context.rank]]
    rows = gather_rows(np.concatenate(own) if own else np.zeros((0, 1)), context)
    order = np.concatenate([chunks[i].numpy() for share in shares for i in share])
    return rows[np.argsort(order)]  # the indices rise


@torch.no_grad()
def _pooled(encode: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> Features:
    pooled: Features = encode(images).double().mean(dim=1).cpu().numpy()
    return pooled


def _pictures(images: torch.Tensor) -> npt.NDArray[np.uint8]:
    """Return uint8 [N, H, W, 3], stretched to the range of all of them."""
    low, high = images.min(), images.max()
    shown = ((images - low) / (high - low).clamp(min=1e-12) * 255).round().byte()
    rgb = shown[:, :3] if shown.shape[1] >= 3 else shown[:, :1].expand(-1, 3, -1, -1)
    return np.ascontiguousarray(rgb.permute(0, 2, 3, 1).numpy())
