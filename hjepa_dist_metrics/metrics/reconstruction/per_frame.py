"""A quality of patches, averaged to frames and described over the frames of the whole job.

A frame's patches may lie on several ranks and in several batches: they are joined by the frame's id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.catalog.limits import NOTHING
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.states import GroupSums, Moments
from hjepa_dist_metrics.states.scales import square_sum
from hjepa_dist_metrics.values import Histogram

Floats = npt.NDArray[np.float64]

QUANTILES = (10, 50, 90)
_NAMED = 5


class FrameMetric(DistributedMetric):
    """Share what all metrics of frames have in common: a number that every patch has, `name`, and its tags.

    A frame's number is the mean over its patches.

    `split`, "train" or "val" for instance, goes into the tags. With s = "{split}_", or "" without a split:
    `Eval/Frame/{s}{name}` (mean over frames), `Eval/Patch/{s}{name}_std` (over patches) and `_nonfinite`
    (patches), `Eval/Quantile/{s}{name}_p10`, `_p50`, `_p90` and `Eval/Histogram/{s}{name}_distribution` over
    frames, between `edges`; what lies beyond falls into the first or last bin. Standard deviations are those
    of all frames or patches there are (divided by n).

    With `num_frames` the ids are 0 to num_frames - 1 and each must have been seen; with `patches_per_frame`
    each frame must have so many patches. Where that is not so, `compute` raises ConfigError on every rank.
    """

    def __init__(
        self,
        name: str,
        split: str = "val",
        *,
        edges: Sequence[float] | Floats,
        num_frames: int | None = None,
        patches_per_frame: int | None = None,
        prefix: str = "Eval",
    ) -> None:
        for key, value in (("num_frames", num_frames), ("patches_per_frame", patches_per_frame)):
            if value is not None and value < 1:
                raise ConfigError(f"{key} is {value!r}; allowed: 1 or more, or None where it is unknown")
        self.name, self.split, self.prefix = name, split, prefix
        self.label = f"{split}_{name}" if split else name
        self.edges = np.asarray(edges, dtype=np.float64)
        self.num_frames, self.patches_per_frame = num_frames, patches_per_frame
        self.add_state("frames", GroupSums())
        self.add_state("patches", Moments())

    def _add(self, values: Tensor, frame_ids: Tensor | None, valid: Tensor | None) -> None:
        if values.ndim != 1:
            raise ConfigError(f"expected one value for each patch, [B], got shape {list(values.shape)}")
        if frame_ids is not None and tuple(frame_ids.shape) != tuple(values.shape):
            raise ConfigError(
                f"expected a frame id for each of {len(values)} patches, got ids of {list(frame_ids.shape)}"
            )
        self.frames.update(values, frame_ids, valid)
        self.patches.update(values, valid)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Describe the frames; {} before the first patch, where no frames are promised."""
        frames, patches = states["frames"], states["patches"]
        self._require_all(frames)
        counts = frames.counts.cpu().numpy()
        if not len(counts):
            return {}
        values = frames.sums.cpu().numpy() / counts
        spread = patches.std * np.sqrt(max(patches.count - 1, 0) / max(patches.count, 1))
        return {
            f"{self.prefix}/Frame/{self.label}": values.mean(),
            f"{self.prefix}/Patch/{self.label}_std": float("nan") if patches.nonfinite else spread,
            f"{self.prefix}/Patch/{self.label}_nonfinite": patches.nonfinite,
            f"{self.prefix}/Histogram/{self.label}_distribution": clipped_histogram(values, self.edges),
            **self._quantiles(values),
            **self._more(values, int(counts.sum())),
        }

    def _quantiles(self, values: Floats) -> dict[str, Any]:
        marks = np.percentile(values, QUANTILES)
        named = zip(QUANTILES, marks, strict=True)
        return {f"{self.prefix}/Quantile/{self.label}_p{quantile}": mark for quantile, mark in named}

    def _more(self, values: Floats, num_patches: int) -> dict[str, Any]:
        """Return further tags from the frames' values: for subclasses."""
        return {}

    def _require_all(self, frames: GroupSums) -> None:
        of = f"{type(self).__name__} of {self.label!r}"
        if self.num_frames is not None:
            expected = torch.arange(self.num_frames, device="cpu")
            keys = frames.keys.cpu()
            missing = expected[~torch.isin(expected, keys)].tolist()
            if missing:
                raise ConfigError(f"{of}: no rank has a patch of {_few('frame', missing)}")
            unknown = keys[~torch.isin(keys, expected)].tolist()
            if unknown:
                bounds = f"ids are 0 to {self.num_frames - 1}"
                raise ConfigError(f"{of}: unknown {_few('frame', unknown)}: {bounds}")
        if self.patches_per_frame is not None:
            wrong = frames.counts != self.patches_per_frame
            if bool(wrong.any()):
                key, count = int(frames.keys[wrong][0]), int(frames.counts[wrong][0])
                raise ConfigError(
                    f"{of}: frame {key} has {count} patches over all ranks, "
                    f"expected {self.patches_per_frame}; where a sampler pads, pass valid"
                )


class FrameQuality(FrameMetric):
    """Report a number of your own that every patch has, with the tags of `FrameMetric`.

    >>> quality = FrameQuality("psnr", edges=[0.0, 20.0, 40.0])
    >>> quality.update(torch.tensor([18.0, 22.0, 35.0]))
    >>> values = quality.compute()
    >>> values["Eval/Frame/val_psnr"], values["Eval/Quantile/val_psnr_p50"]
    (25.0, 22.0)
    """

    def update(self, values: Tensor, frame_ids: Tensor | None = None, valid: Tensor | None = None) -> None:
        """Add one value for each patch, [B]; `frame_ids` int [B] say of which frame each is.

        Without ids every patch is a frame of its own. `valid` bool [B] leaves out what a sampler padded.
        """
        self._add(values, frame_ids, valid)


def clipped_histogram(values: Floats, edges: Floats) -> Histogram:
    """Count finite values, those beyond the edges in the first or last bin."""
    finite = values[np.isfinite(values)]
    counts = np.histogram(finite.clip(edges[0], edges[-1]), bins=edges)[0].astype(np.int64)
    none = len(finite) == 0
    return Histogram(
        edges,
        counts,
        0.0 if none else float(finite.min()),
        0.0 if none else float(finite.max()),
        float(finite.sum()),
        square_sum(finite),
        len(values) - len(finite),
    )


def generalization_gaps(
    values: Mapping[str, Any], names: Iterable[str], prefix: str = "Eval"
) -> dict[str, float]:
    """Return `Eval/Gap/{name}_gap` = train - val of `Eval/Frame/{split}_{name}`, where both are there."""
    pairs = {name: [f"{prefix}/Frame/{split}_{name}" for split in ("train", "val")] for name in names}
    return {
        f"{prefix}/Gap/{name}_gap": float(values[train]) - float(values[val])
        for name, (train, val) in pairs.items()
        if train in values and val in values
    }


def _few(noun: str, ids: Sequence[int]) -> str:
    listed = ", ".join(map(str, ids[:_NAMED]))
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return f"{noun} {listed}" if len(ids) == 1 else f"{noun}s {listed}{more}"


_spread = partial(Entry, dashboard="dual_head_statistics", family="representations")
_quantile = partial(Entry, dashboard="dual_head_distributions", family="representations")
_frame = partial(Entry, dashboard="dual_head_evaluation", family="representations")

ENTRIES = (
    _frame(
        "Eval/Gap/{name}_gap",
        "gap of {name}",
        "The same for another quality.",
        healthy="small and stable",
    ),
    _spread(
        "Eval/Patch/{name}_std",
        "spread of {name} over patches",
        "Standard deviation (divided by n) over all patches of all ranks.",
        healthy="low; higher than over frames, since places differ",
    ),
    _spread(
        "Eval/Patch/{name}_nonfinite",
        "nonfinite patches of {name}",
        "Patches whose quality is NaN.",
        unit="patches",
        healthy="0",
        bounds=NOTHING,
    ),
    _quantile(
        "Eval/Quantile/{name}_p10",
        "lower decile of {name} over frames",
        "A tenth of the frames lie below.",
        healthy="rises with the median",
    ),
    _quantile(
        "Eval/Quantile/{name}_p50",
        "median of {name} over frames",
        "Half of the frames lie below.",
        healthy="near the mean",
    ),
    _quantile(
        "Eval/Quantile/{name}_p90",
        "upper decile of {name} over frames",
        "A tenth of the frames lie above.",
        healthy="rises with the median",
    ),
    Entry(
        "Eval/Histogram/{name}_distribution",
        "distribution of {name} over frames",
        "Each frame counted once, over edges that stay: 0 to 60 dB for PSNR, -1 to 1 for similarities.",
        kind="histogram",
        family="representations",
        healthy="narrow, at high values, the same on both splits",
    ),
)
