"""Reconstruction of images and of their meaning: PSNR and cosine similarity by frame."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.catalog.limits import psnr_gap_limits, similarity_gap_limits, similarity_limits
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.reconstruction.per_frame import Floats, FrameMetric
from hjepa_dist_metrics.metrics.ssl.formulas.rows import cosines, row_norms, unit_rows
from hjepa_dist_metrics.metrics.ssl.formulas.sampled import SIMILARITY_EDGES
from hjepa_dist_metrics.states import Max, Min
from hjepa_dist_metrics.states.rows import row_weights

PSNR_CAP = 100.0
PSNR_EDGES = np.linspace(0.0, 60.0, 121)


def psnr(prediction: Tensor, target: Tensor, cap: float = PSNR_CAP) -> Tensor:
    """Return -10 log10 MSE of each image, float64 [B], in dB; images [B, C, H, W] in [0, 1].

    An image without any error would have an infinite PSNR, which no chart can draw and which would make every
    mean infinite: values end at `cap`, 100 dB, an MSE of 1e-10. An 8-bit image's rounding alone is at 59 dB.
    """
    error = prediction.detach().to(torch.float64) - target.detach().to(torch.float64)
    root_mean_square = row_norms(error.flatten(1)) / max(error[0].numel(), 1) ** 0.5 if len(error) else error
    floor = 10.0 ** (-cap / 20.0)
    return -20.0 * torch.log10(root_mean_square.reshape(len(error)).clamp(min=floor))


class Reconstruction(FrameMetric):
    """Report the PSNR of frames whose patches may lie on several ranks.

    A frame's PSNR is the mean over its patches. Besides the tags of `FrameMetric` with the name "psnr":
    `Eval/PSNR_Stats/{s}std`, `{s}min`, `{s}max` over frames, `Eval/Info/num_{s}frames` and `num_{s}patches`.
    A perfect patch counts as `cap` dB.

    >>> reconstruction = Reconstruction()
    >>> reconstruction.update(torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.1))
    >>> round(reconstruction.compute()["Eval/Frame/val_psnr"], 3)
    20.0
    """

    def __init__(
        self,
        split: str = "val",
        *,
        num_frames: int | None = None,
        patches_per_frame: int | None = None,
        cap: float = PSNR_CAP,
        prefix: str = "Eval",
    ) -> None:
        super().__init__(
            "psnr",
            split,
            edges=PSNR_EDGES,
            num_frames=num_frames,
            patches_per_frame=patches_per_frame,
            prefix=prefix,
        )
        if not 0 < cap < float("inf"):
            raise ConfigError(f"cap is {cap!r}; allowed: a positive, finite number of dB")
        self.cap = cap
        self.add_state("lowest", Min())
        self.add_state("highest", Max())

    def update(
        self,
        prediction: Tensor,
        target: Tensor,
        frame_ids: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> None:
        """Compare patches [B, C, H, W]; `frame_ids` int [B] say of which frame each is.

        Targets must lie in [0, 1]: where one does not, this raises ConfigError; of targets on a device, with
        which this does not synchronise, `compute` does. Predictions may leave the range: nothing is clipped.
        """
        _require_images(prediction, target)
        self._watch_range(target, valid)
        self._add(psnr(prediction, target, self.cap), frame_ids, valid)

    def _watch_range(self, target: Tensor, valid: Tensor | None) -> None:
        if target.numel() == 0:
            return
        counted = target if valid is None else _only(target, valid)
        low, high = torch.aminmax(counted)
        if target.device.type == "cpu":
            _require_range(float(low), float(high))
        self.lowest.update(low)
        self.highest.update(high)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Describe the frames; {} before the first patch, where no frames are promised."""
        _require_range(states["lowest"].value, states["highest"].value)
        return super().compute_from(states)

    def _more(self, values: Floats, num_patches: int) -> dict[str, Any]:
        stats = f"{self.prefix}/PSNR_Stats/"
        info = f"{self.prefix}/Info/num_"
        s = f"{self.split}_" if self.split else ""
        return {
            f"{stats}{s}std": values.std(),
            f"{stats}{s}min": values.min(),
            f"{stats}{s}max": values.max(),
            f"{info}{s}frames": len(values),
            f"{info}{s}patches": num_patches,
        }


class SemanticSimilarity(FrameMetric):
    """Report the cosine between predicted and true embeddings of patches, averaged to frames.

    Besides the tags of `FrameMetric` with the name "{name}_sim": `Eval/Frame/{s}{name}_dist`, 1 - similarity.

    >>> similarity = SemanticSimilarity("clip")
    >>> similarity.update(torch.eye(3), torch.eye(3))
    >>> round(similarity.compute()["Eval/Frame/val_clip_sim"], 6)
    1.0
    """

    def __init__(
        self,
        name: str = "clip",
        split: str = "val",
        *,
        num_frames: int | None = None,
        patches_per_frame: int | None = None,
        prefix: str = "Eval",
    ) -> None:
        super().__init__(
            f"{name}_sim",
            split,
            edges=SIMILARITY_EDGES,
            num_frames=num_frames,
            patches_per_frame=patches_per_frame,
            prefix=prefix,
        )

    def update(
        self,
        prediction: Tensor,
        target: Tensor,
        frame_ids: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> None:
        """Compare embeddings [B, D]; an embedding of zeros has the similarity 0."""
        if prediction.ndim != 2 or prediction.shape != target.shape:
            both = f"{list(prediction.shape)} and {list(target.shape)}"
            raise ConfigError(f"expected predicted and true embeddings of one shape [B, D], got {both}")
        self._add(cosines(unit_rows(prediction), unit_rows(target)), frame_ids, valid)

    def _more(self, values: Floats, num_patches: int) -> dict[str, Any]:
        label = self.label.removesuffix("_sim")
        return {f"{self.prefix}/Frame/{label}_dist": 1.0 - values.mean()}


def _wide(images: Tensor) -> Tensor:
    images = images.detach()
    return images if images.dtype == torch.float64 else images.to(torch.float32)


def _require_images(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape or target.ndim != 4:
        both = f"{list(prediction.shape)} and {list(target.shape)}"
        raise ConfigError(f"expected predicted and true images of one shape [B, C, H, W], got {both}")
    if not target.is_floating_point():
        raise ConfigError(f"images must be floating point in [0, 1], got {target.dtype}: divide by 255 first")


def _require_range(low: float, high: float) -> None:
    if low < 0.0 or high > 1.0:
        raise ConfigError(f"images must lie in [0, 1], got values from {low:.4g} to {high:.4g}")


def _only(images: Tensor, valid: Tensor) -> Tensor:
    """Return images with those that do not count set to 0."""
    counted = row_weights(valid, images.shape[:1], images.device)
    return torch.where(counted.reshape(-1, 1, 1, 1), images, torch.zeros_like(images))


_frame = partial(Entry, dashboard="dual_head_evaluation", family="representations")
_spread = partial(Entry, unit="dB", dashboard="dual_head_statistics", family="representations")
_info = partial(Entry, healthy="constant", family="representations")

ENTRIES = (
    _frame(
        "Eval/Frame/{name}_psnr",
        "PSNR of {name} frames",
        "-10 log10 MSE of each patch, mean over a frame's patches wherever they lie, mean over frames.",
        unit="dB",
        healthy="rises on both splits, a little lower on validation frames",
        deviation="a perfect patch counts as 100 dB and not as infinite",
    ),
    _frame(
        "Eval/Frame/{name}_sim",
        "similarity of {name} frames",
        "Cosine of a patch's predicted embedding with the frozen encoder's, averaged as the PSNR.",
        healthy="near 1",
    ),
    _frame(
        "Eval/Frame/val_{name}_sim",
        "similarity {name} of validation frames",
        "Cosine of a patch's predicted embedding with the frozen encoder's, averaged as the PSNR.",
        healthy="above 0.85; below 0.7 the head has not learned the meaning",
        limits=similarity_limits,
    ),
    _frame(
        "Eval/Frame/{name}_dist",
        "distance of {name} frames",
        "1 - similarity.",
        healthy="near 0",
    ),
    _frame(
        "Eval/Gap/psnr_gap",
        "PSNR gap",
        "PSNR of training frames minus that of validation frames.",
        unit="dB",
        healthy="below 3 and stable; above 5 overfits",
        limits=psnr_gap_limits,
    ),
    _frame(
        "Eval/Gap/{name}_sim_gap",
        "similarity gap of {name}",
        "Similarity on training frames minus that on validation frames.",
        healthy="below 0.1 and stable",
        limits=similarity_gap_limits,
    ),
    _spread(
        "Eval/PSNR_Stats/{name}_std",
        "spread of PSNR over {name} frames",
        "Standard deviation (divided by n) over the frames of the whole job.",
        unit="dB",
        healthy="low: frames are reconstructed equally well",
    ),
    _spread(
        "Eval/PSNR_Stats/{name}_min",
        "worst PSNR of {name} frames",
        "Smallest PSNR of a frame.",
        unit="dB",
        healthy="rises with the mean",
    ),
    _spread(
        "Eval/PSNR_Stats/{name}_max",
        "best PSNR of {name} frames",
        "Largest PSNR of a frame.",
        unit="dB",
        healthy="high",
    ),
    Entry(
        "Eval/Image/{name}",
        "a frame, true and reconstructed ({name})",
        "The frame in the middle of the split: true above, reconstructed below.",
        kind="image",
        family="figures",
        healthy="blurred at first, then the same picture; patch borders vanish",
    ),
    _info(
        "Eval/Info/num_{name}_frames",
        "number of {name} frames",
        "Frames seen over all ranks.",
        unit="frames",
        healthy="constant",
    ),
    _info(
        "Eval/Info/num_{name}_patches",
        "number of {name} patches",
        "Patches seen over all ranks, each once.",
        unit="patches",
        healthy="constant, frames times patches a frame",
    ),
)
