"""Exact nearest neighbours over the features of all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.figures.gather import gather_rows
from hjepa_dist_metrics.figures.inputs import Floats, host
from hjepa_dist_metrics.metrics.ssl.formulas.rows import unit_rows
from hjepa_dist_metrics.parallel import ProcessContext

_QUERY, _RANK, _INDEX, _COSINE = range(4)
_HEAD = 4


class Neighbours(NamedTuple):
    """Hold a query and its neighbours, nearest first."""

    number: int
    """Number of the query among the main rank's images."""
    query: Floats
    """[H, W, 3]."""
    pictures: list[Floats]
    cosines: list[float]
    owners: list[tuple[int, int]]
    """(rank, number among that rank's images) of each neighbour."""


def nearest_neighbours(
    features: Floats, pictures: Floats, queries: Sequence[int], k: int, context: ProcessContext
) -> list[Neighbours]:
    """Return the `k` images of all ranks nearest to each query, by cosine; ties by rank, then number.

    `features` [n, D] and `pictures` [n, H, W, 3] are this rank's, `queries` numbers of rank zero's. Each rank
    sends its own `k` best, so that the exchange does not grow with n. A collective call.
    """
    if len(features) != len(pictures):
        raise ConfigError(f"got {len(features)} rows of features and {len(pictures)} images")
    if k < 1:
        raise ConfigError(f"k is {k!r}; allowed: 1 or more")
    first = context.rank == 0
    if first and any(not 0 <= q < len(features) for q in queries):
        raise ConfigError(f"there are {len(features)} images, got queries {list(queries)}")
    chosen = np.asarray(queries if first else [], dtype=np.int64)
    unit = host(unit_rows(torch.from_numpy(np.ascontiguousarray(features))))
    flat = pictures.reshape(len(pictures), -1)
    mine = (
        np.column_stack([chosen, unit[chosen], flat[chosen]])
        if first
        else np.zeros((0, 1 + unit.shape[1] + flat.shape[1]))
    )
    asked = gather_rows(mine, context)
    candidates = gather_rows(_candidates(asked[:, : 1 + unit.shape[1]], unit, flat, k, context.rank), context)
    shape = pictures.shape[1:]
    return [_best(row, number, candidates, k, shape, unit.shape[1]) for number, row in enumerate(asked)]


def _candidates(asked: Floats, unit: Floats, flat: Floats, k: int, rank: int) -> Floats:
    """Return this rank's k best of each query: rows [query, rank, index, cosine, picture...]."""
    blocks = []
    for number, row in enumerate(asked):
        cosine = unit @ row[1:]
        if rank == 0:
            cosine[int(row[0])] = -np.inf
        best = np.argsort(-cosine, kind="stable")[:k]
        best = best[np.isfinite(cosine[best])]
        head = np.column_stack([np.full(len(best), number), np.full(len(best), rank), best, cosine[best]])
        blocks.append(np.hstack([head, flat[best]]))
    return np.vstack(blocks) if blocks else np.zeros((0, _HEAD + flat.shape[1]))


def _best(
    row: Floats, number: int, candidates: Floats, k: int, shape: tuple[int, ...], width: int
) -> Neighbours:
    found = candidates[candidates[:, _QUERY] == number]
    found = found[np.lexsort((found[:, _INDEX], found[:, _RANK], -found[:, _COSINE]))][:k]
    return Neighbours(
        int(row[0]),
        row[1 + width :].reshape(shape),
        [one[_HEAD:].reshape(shape) for one in found],
        [float(cosine) for cosine in found[:, _COSINE]],
        [(int(one[_RANK]), int(one[_INDEX])) for one in found],
    )
