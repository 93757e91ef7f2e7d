"""What a run's figures are drawn from, over all ranks, and the figures as values that are drawn later."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.figures import run
from hjepa_dist_metrics.figures.canvas import CARD_DPI, to_image
from hjepa_dist_metrics.figures.inputs import Grid, grid_of, host
from hjepa_dist_metrics.figures.predictions.projection import Method
from hjepa_dist_metrics.metrics import DistributedMetric
from hjepa_dist_metrics.metrics.ssl.collapse import token_ids
from hjepa_dist_metrics.metrics.ssl.formulas.spectrum import covariance_spectrum
from hjepa_dist_metrics.metrics.ssl.prediction import gram_matrices
from hjepa_dist_metrics.states import BottomK, Covariance, Sample, Sum
from hjepa_dist_metrics.states.base import moved
from hjepa_dist_metrics.values import Drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What draws a figure from arrays that it holds, and can go to another process.
Sketch = Callable[[], "Figure"]
_SCENES, _POINTS, _PATCHES = 4, 256, 12
# Pixels travel as whole numbers, with this many steps to the unit.
_STEPS = 4096.0


@dataclass(frozen=True)
class Observed:
    """Hold what a run shows of one batch."""

    images: Tensor
    """[B, C, H, W]."""
    mask: Tensor
    """Bool [B, N], True = masked."""
    predictions: Sequence[Tensor]
    """A level each: [B, N_l, D_l], fine to coarse; N_0 = N."""
    targets: Sequence[Tensor]
    """As the predictions."""
    valid: Sequence[Tensor | None] | None = None
    """Bool [B, N_l]: tokens that count; None: all."""
    ids: Tensor | None = None
    """int64 [B], global numbers of the images."""
    blocks: Tensor | None = None
    """int [B, K, 4]: top, left, height, width of the masks' blocks, height 0 for none."""
    grid: Grid | None = None
    """(rows, columns) of the N patches; a square by default."""

    def cosines(self, level: int) -> Tensor:
        """Return the cosine between prediction and target, float32 [B, N_l]."""
        return F.cosine_similarity(self.predictions[level].float(), self.targets[level].float(), dim=-1)

    def counted(self, level: int) -> Tensor:
        """Return bool [B, N_l]: tokens that count."""
        mask = None if self.valid is None else self.valid[level]
        if mask is not None:
            return moved(mask, self.targets[level].device, torch.bool)
        return torch.ones(self.targets[level].shape[:2], dtype=torch.bool, device=self.targets[level].device)


class RunFigures(DistributedMetric):
    """Keep what the figures of a run show: exact counts and moments, and uniform samples, over all ranks.

    Made for the shapes of a first `Observed` batch. The values are `Drawing`s: `masking/geometry_analysis`,
    `masking/coverage`, `patches/similarity_heatmap`, `prediction/most_difficult_patches`,
    `prediction/easiest_patches`, `prediction/level{i}_gram_{prediction,target}`, `collapse/spectrum` and
    `embeddings/{method}_pred_vs_target`.
    """

    def __init__(self, first: Observed, method: Method = "pca") -> None:
        self.method = method
        self.image = tuple(first.images.shape[1:])
        self.grid = grid_of(first.mask.shape[1], first.grid, (self.image[1], self.image[2]))
        self.levels = len(first.predictions)
        rows, columns = self.grid
        if self.image[1] % rows or self.image[2] % columns:
            size = f"{self.image[1]}x{self.image[2]}"
            raise ConfigError(f"images of {size} pixels do not divide into {rows}x{columns} patches")
        self.patch = (self.image[0], self.image[1] // rows, self.image[2] // columns)
        # A patch alone tells little: it is kept with its eight neighbours.
        self.crop = (self.image[0], 3 * self.patch[1], 3 * self.patch[2])
        self.add_state("count", Sum())
        self.add_state("coverage", Sum(shape=(rows * columns,)))
        self.add_state("sizes", Sum(shape=((rows + 1) * (columns + 1),)))
        self.add_state("scenes", Sample(_SCENES, int(np.prod(self.image)) + 3 * rows * columns))
        self.add_state("hardest", BottomK(_PATCHES, 2 + int(np.prod(self.crop))))
        self.add_state("easiest", BottomK(_PATCHES, 2 + int(np.prod(self.crop))))
        for i, target in enumerate(first.targets):
            self.add_state(f"points{i}", Sample(_POINTS, 2 * target.shape[-1]))
            self.add_state(f"joint{i}", Covariance(2 * target.shape[-1]))

    def update(self, seen: Observed) -> None:
        """Add a batch."""
        self._check(seen)
        mask = moved(seen.mask, seen.images.device, torch.bool)
        self.count.update(len(mask))
        self.coverage.update(mask)
        if seen.blocks is not None:
            self.sizes.update(self._block_sizes(seen.blocks))
        cosine, counted = seen.cosines(0), seen.counted(0)
        parts = [seen.images.flatten(1), mask, cosine, counted]
        self.scenes.update(torch.cat([part.to(torch.float32) for part in parts], dim=1), ids=seen.ids)
        ids = torch.zeros(len(mask), dtype=torch.int64) if seen.ids is None else seen.ids
        self.hardest.update(*self._extreme(seen.images, cosine, counted, ids))
        self.easiest.update(*self._extreme(seen.images, -cosine, counted, ids))
        for i in range(self.levels):
            rows = torch.cat([seen.predictions[i].float(), seen.targets[i].float()], dim=-1)
            numbers = None if seen.ids is None else token_ids(seen.ids.to(rows.device), rows)
            self.states[f"points{i}"].update(rows, seen.counted(i), numbers)
            self.states[f"joint{i}"].update(rows, seen.counted(i))

    def _check(self, seen: Observed) -> None:
        patches = self.grid[0] * self.grid[1]
        wanted = {
            "images": (seen.images, (len(seen.mask), *self.image)),
            "mask": (seen.mask, (len(seen.mask), patches)),
        }
        for name, (tensor, shape) in wanted.items():
            if tuple(tensor.shape) != shape:
                raise ConfigError(f"figures: expected {name} {list(shape)}, got {list(tensor.shape)}")
        lengths = {len(seen.predictions), len(seen.targets), len(seen.valid or seen.targets)}
        if lengths != {self.levels} or seen.predictions[0].shape[1] != patches:
            raise ConfigError(
                f"figures: expected predictions, targets and valid of {self.levels} levels, the finest with "
                f"{patches} tokens, got {len(seen.predictions)}, {len(seen.targets)} and "
                f"{len(seen.valid or seen.targets)} levels of {[p.shape[1] for p in seen.predictions]} tokens"
            )

    def _block_sizes(self, blocks: Tensor) -> Tensor:
        """Return how often each (height, width) occurs, [(rows + 1) (columns + 1)]."""
        rows, columns = self.grid
        sizes = blocks.reshape(-1, 4)[:, 2:].to(torch.int64)
        place = sizes[:, 0].clamp(0, rows) * (columns + 1) + sizes[:, 1].clamp(0, columns)
        kept = (sizes[:, 0] > 0).to(torch.float64)
        counts = torch.zeros((rows + 1) * (columns + 1), dtype=torch.float64, device=place.device)
        return counts.scatter_add_(0, place, kept)

    def _extreme(self, images: Tensor, scores: Tensor, counted: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return this batch's lowest scores and, with each, image and patch number and the pixels around."""
        flat = scores.masked_fill(~counted, float("inf")).flatten()
        lowest = torch.sort(flat, stable=True).indices[:_PATCHES]
        _, down, across = self.patch
        padded = F.pad(images, (across, across, down, down))
        tiles = padded.unfold(2, 3 * down, down).unfold(3, 3 * across, across)  # [B, C, rows, columns, h, w]
        image = lowest // scores.shape[1]
        number = lowest % scores.shape[1]
        pixels = tiles[image, :, number // self.grid[1], number % self.grid[1]].flatten(1)
        names = torch.stack([moved(ids, image.device)[image], number], dim=1)
        return flat[lowest], torch.cat([names.double(), (pixels.double() * _STEPS).round()], dim=1)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return a `Drawing` a figure; {} before the first image."""
        if not states["count"].value:
            return {}
        figures: dict[str, Callable[[], Sketch]] = {
            "masking/geometry_analysis": lambda: self._geometry(states),
            "masking/coverage": lambda: partial(
                run.coverage_map, host(states["coverage"].value), states["count"].value, self.grid
            ),
            "patches/similarity_heatmap": lambda: self._heatmap(states),
        }
        if len(states["hardest"].scores):
            figures["prediction/most_difficult_patches"] = lambda: self._patches(states, "hardest", 1.0)
            figures["prediction/easiest_patches"] = lambda: self._patches(states, "easiest", -1.0)
        present = [i for i in range(self.levels) if states[f"joint{i}"].count > 1]
        for i in present:
            for kind in ("prediction", "target"):
                tag = f"prediction/level{i}_gram_{kind}"
                figures[tag] = partial(self._gram, states, i, kind)
        if present:
            figures["collapse/spectrum"] = lambda: self._spectrum(states, present)
        if sum(len(states[f"points{i}"].rows_kept) for i in present) > 2:
            tag = f"embeddings/{self.method}_pred_vs_target"
            figures[tag] = lambda: self._map(states, present)
        return {tag: _drawing(sketch) for tag, sketch in figures.items()}

    def _scenes(self, states: Mapping[str, Any]) -> tuple[Any, Any, Any, Any]:
        """Return images [k, C, H, W], masks, cosines and tokens that count [k, N] of the sampled images."""
        rows, patches = host(states["scenes"].rows_kept), self.grid[0] * self.grid[1]
        pixels = int(np.prod(self.image))
        images = rows[:, :pixels].reshape(-1, *self.image)
        parts = [rows[:, pixels + i * patches : pixels + (i + 1) * patches] for i in range(3)]
        return images, parts[0] > 0.5, parts[1], parts[2] > 0.5

    def _geometry(self, states: Mapping[str, Any]) -> Sketch:
        images, masks, _, _ = self._scenes(states)
        sizes = host(states["sizes"].value).reshape(self.grid[0] + 1, self.grid[1] + 1)
        coverage = host(states["coverage"].value)
        return partial(run.mask_geometry, coverage, states["count"].value, sizes, self.grid, images, masks)

    def _heatmap(self, states: Mapping[str, Any]) -> Sketch:
        images, _, cosines, counted = self._scenes(states)
        return partial(run.similarity_heatmap, images, cosines, counted, self.grid)

    def _patches(self, states: Mapping[str, Any], name: str, sign: float) -> Sketch:
        labels = states[name].labels
        patches = (labels[:, 2:] / _STEPS).reshape(-1, *self.crop)
        title = "Hardest patches" if name == "hardest" else "Easiest patches"
        return partial(run.patch_grid, patches, sign * states[name].scores, labels[:, :2], title)

    def _gram(self, states: Mapping[str, Any], level: int, kind: str) -> Sketch:
        matrix = gram_matrices(states, level)[kind]
        return partial(run.gram_matrix, matrix, f"{kind}s, level {level}")

    def _spectrum(self, states: Mapping[str, Any], levels: Sequence[int]) -> Sketch:
        spectra = {}
        for i in levels:
            joint = states[f"joint{i}"]
            dim = joint.matrix.shape[0] // 2
            for kind, part in (("predictions", slice(0, dim)), ("targets", slice(dim, None))):
                values = covariance_spectrum(joint.matrix[part, part], joint.mean[part])
                spectra[f"level {i}, {kind}"] = host(values.sqrt())
        return partial(run.spectrum, spectra)

    def _map(self, states: Mapping[str, Any], levels: Sequence[int]) -> Sketch:
        rows = [host(states[f"points{i}"].rows_kept) for i in levels]
        halves = [np.split(r, 2, axis=1) for r in rows]
        return partial(run.prediction_map, [h[0] for h in halves], [h[1] for h in halves], self.method)


def _drawing(sketch: Callable[[], Sketch]) -> Drawing:
    return Drawing(lambda: to_image(sketch()(), CARD_DPI), sketch)


def observed(
    images: Tensor,
    mask: Tensor | None,
    predictions: Sequence[Tensor] | None,
    targets: Sequence[Tensor] | None,
    **more: Any,
) -> Observed:
    """Return what a step showed, `mask` as [B, N] or [B, rows, columns]; ConfigError says what is missing."""
    given = {"mask": mask, "predictions": predictions, "targets": targets}
    missing = [name for name, value in given.items() if value is None]
    if mask is None or predictions is None or targets is None:
        raise ConfigError(
            f"figures are drawn of images with mask, predictions and targets; missing: {missing}"
        )
    grid = (mask.shape[1], mask.shape[2]) if mask.ndim == 3 else None
    return Observed(images, mask.flatten(1), predictions, targets, grid=grid, **more)


def resolution(numbers: Mapping[str, float]) -> dict[str, Drawing]:
    """Return `hierarchy/resolution`, drawn from the hierarchy's numbers by tag; {} where there are none."""
    kinds = ("num_tokens", "compute_share", "memory_share")
    levels = 0
    while all(f"hierarchy/level{levels}_{kind}" in numbers for kind in kinds):
        levels += 1
    if levels == 0:
        return {}
    bars = [[numbers[f"hierarchy/level{i}_{kind}"] for i in range(levels)] for kind in kinds]
    return {"hierarchy/resolution": _drawing(lambda: partial(run.resolution, *bars))}
