"""A nearest-neighbour probe of the frozen target encoder with few labels, and a map of images.

Both are the same at every world size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hjepa_dist_metrics import DistributedMetric, KNNProbe, MetricCollection, ProcessContext
from hjepa_dist_metrics.figures.gather import gather_rows
from hjepa_dist_metrics.reference.data.images import ImageSet, ImageSplits, stack_images
from hjepa_dist_metrics.values import Embedding

Encode: TypeAlias = Callable[[Tensor], Tensor]

NEIGHBOURS, DRAWS, _CHUNK = 5, 5, 64
_MOST_POINTS = 500


def draw_labelled(labels: Tensor, per_class: int, draw: int) -> npt.NDArray[np.int64]:
    """Return the positions of up to `per_class` samples of every class, drawn by `draw` alone."""
    rng, known = np.random.default_rng(draw), labels.numpy()
    classes = [np.flatnonzero(known == c) for c in np.unique(known)]
    return np.concatenate([rng.permutation(members)[:per_class] for members in classes])


def knn_accuracy(
    encode: Encode,
    data: ImageSplits,
    dim: int,
    *,
    labels_per_class: int = 10,
    context: ProcessContext | None = None,
) -> float | None:
    """Return the share of validation images whose class a `KNNProbe` finds, averaged over 5 draws of the
    labelled images.

    `encode` maps images [B, C, H, W] to token features [B, N, dim], such as `HJEPA.extract_features`. The
    ranks of `context` share the images, and every rank gets the same result. None where the images have no
    classes.
    """
    if not data.class_names:
        return None
    where = context or ProcessContext.current()
    draws = [draw_labelled(data.train.labels, labels_per_class, draw) for draw in range(DRAWS)]
    probes = {str(i): KNNProbe(dim, len(data.class_names), k=NEIGHBOURS) for i in range(DRAWS)}
    for index, features in _encoded(encode, data.train, np.unique(np.concatenate(draws)), where):
        labels = data.train.labels[index].to(features.device)
        for probe, draw in zip(probes.values(), draws, strict=True):
            drawn = torch.from_numpy(np.isin(index.numpy(), draw)).to(features.device)
            probe.update(features, torch.where(drawn, labels, -1), ids=index)
    scores = {name: probe.held_out("val", where) for name, probe in probes.items()}
    for index, features in _encoded(encode, data.val, np.arange(len(data.val)), where):
        for score in scores.values():
            score.update(features, data.val.labels[index])
    return _mean_accuracy(scores, where)


def _encoded(
    encode: Encode, images: ImageSet, indices: npt.NDArray[np.int64], context: ProcessContext
) -> Iterable[tuple[Tensor, Tensor]]:
    """Yield indices and features of this rank's chunks; chunks are fixed, the same at every world size."""
    chunks = torch.split(torch.from_numpy(indices), _CHUNK)
    for chunk in chunks[context.rank :: context.world_size]:
        with torch.no_grad():
            yield chunk, encode(stack_images(images, chunk))


def _mean_accuracy(scores: Mapping[str, DistributedMetric], context: ProcessContext) -> float:
    values = [MetricCollection({"score": score}, context).compute() for score in scores.values()]
    return float(np.mean([float(value["probe/val_knn_top1"]) for value in values]))


def held_out_points(encode: Encode, data: ImageSplits, context: ProcessContext) -> Embedding:
    """Return pooled features of the first 500 held-out images, with their classes and pictures.

    `encode` maps images [B, C, H, W] to token features [B, N, D]. A collective call, the same on every rank.
    """
    chosen = np.arange(min(len(data.val), _MOST_POINTS))
    vectors = _pooled_rows(encode, data.val, chosen, context).astype(np.float32)
    classes = data.val.labels[: len(chosen)].tolist()
    labels = tuple(data.class_names[c] for c in classes) if data.class_names else ()
    return Embedding(vectors, labels, _pictures(stack_images(data.val, torch.from_numpy(chosen))))


def _pooled_rows(
    encode: Encode, images: ImageSet, indices: npt.NDArray[np.int64], context: ProcessContext
) -> npt.NDArray[np.float64]:
    """Return pooled features [len(indices), D] of all ranks; every world size gives the same bits."""
    own = [f.double().mean(dim=1).cpu().numpy() for _, f in _encoded(encode, images, indices, context)]
    rows = gather_rows(np.concatenate(own) if own else np.zeros((0, 1)), context)
    chunks = np.split(indices, range(_CHUNK, len(indices), _CHUNK))
    order = np.concatenate(
        [c for rank in range(context.world_size) for c in chunks[rank :: context.world_size]]
    )
    return rows[np.argsort(order)]  # the indices rise


def _pictures(images: Tensor) -> npt.NDArray[np.uint8]:
    """Return uint8 [N, H, W, 3], stretched to the range of all of them."""
    low, high = images.min(), images.max()
    shown = ((images - low) / (high - low).clamp(min=1e-12) * 255).round().byte()
    rgb = shown[:, :3] if shown.shape[1] >= 3 else shown[:, :1].expand(-1, 3, -1, -1)
    return np.ascontiguousarray(rgb.permute(0, 2, 3, 1).numpy())
