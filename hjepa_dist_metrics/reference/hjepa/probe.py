"""A nearest-neighbour probe of the frozen target encoder with few labels, the same at every world size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hjepa_dist_metrics import DistributedMetric, KNNProbe, MetricCollection, ProcessContext
from hjepa_dist_metrics.reference.data.images import ImageSet, ImageSplits, stack_images

Encode: TypeAlias = Callable[[Tensor], Tensor]

NEIGHBOURS, DRAWS, _CHUNK = 5, 5, 64


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
