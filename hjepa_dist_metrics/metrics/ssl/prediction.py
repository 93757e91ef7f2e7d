"""How well predictions meet their targets, level by level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from hjepa_dist_metrics.metrics.histograms import histogram_value
from hjepa_dist_metrics.metrics.ssl.formulas.cka import correlation, debiased_cka, linear_cka
from hjepa_dist_metrics.metrics.ssl.formulas.rows import cosines, feature_blocks, row_norms, unit_rows
from hjepa_dist_metrics.states import BottomK, Histogram, Max, Min, Moments, PairedCovariance
from hjepa_dist_metrics.states.base import moved
from hjepa_dist_metrics.values import Text

COSINE_EDGES = np.linspace(-1.0, 1.0, 65)
DEFAULT_PATCHES = 16


class PredictionQuality(DistributedMetric):
    """Compare predicted with target tokens, over the valid tokens of all ranks.

    Tags under `prediction/level{i}_`: `cosine_sim_mean`, `_std`, `_min`, `_max`, `normalized_mse` (mean
    square of the difference of the L2-normalised features), `l2_distance`, `num_tokens`, `nonfinite`,
    `similarity_histogram`, and where the widths `dims` are given `cka` and `cka_debiased`.
    `collapse/alignment` is the mean of |p - t|^2 of unit rows, which is 2 - 2 cosine, over all levels,
    `collapse/level{i}_alignment` of each. With `ids` in `update`, the tokens
    that match worst and best are kept by image and patch: `extremes`, and, as text,
    `prediction/level{i}_extreme_patches`.

    The cosine with a vector of zeros is 0. A level without valid tokens has no tags.

    >>> quality = PredictionQuality(num_levels=1)
    >>> target = torch.eye(4)[None]  # one image of four tokens
    >>> quality.update([target], [target])
    >>> values = quality.compute()
    >>> round(values["prediction/level0_cosine_sim_mean"], 6), values["prediction/level0_l2_distance"]
    (1.0, 0.0)
    """

    def __init__(
        self, num_levels: int, dims: Sequence[int] | None = None, patches: int = DEFAULT_PATCHES
    ) -> None:
        if num_levels < 1:
            raise ConfigError(f"the number of levels must be 1 or more, got num_levels={num_levels}")
        self.num_levels, self.dims = num_levels, None if dims is None else [int(dim) for dim in dims]
        if self.dims is not None and len(self.dims) != num_levels:
            raise ConfigError(f"expected {num_levels} dims, one a level, got {self.dims}")
        for i in range(num_levels):
            self.add_state(f"cosine{i}", Moments())
            self.add_state(f"low{i}", Min())
            self.add_state(f"high{i}", Max())
            self.add_state(f"error{i}", Moments())
            self.add_state(f"apart{i}", Moments())
            self.add_state(f"distance{i}", Moments())
            self.add_state(f"histogram{i}", Histogram(COSINE_EDGES))
            self.add_state(f"hardest{i}", BottomK(patches, 2))
            self.add_state(f"easiest{i}", BottomK(patches, 2))
            if self.dims is not None:
                self.add_state(f"joint{i}", PairedCovariance(self.dims[i], self.dims[i]))

    def update(
        self,
        predictions: Sequence[Tensor],
        targets: Sequence[Tensor],
        valid: Sequence[Tensor | None] | None = None,
        ids: Tensor | None = None,
    ) -> None:
        """Add a batch: for each level [B, N_l, D] twice, bool [B, N_l] for the tokens that count.

        `ids` int64 [B] are the images' global numbers.
        """
        masks = [None] * self.num_levels if valid is None else list(valid)
        lengths = [len(predictions), len(targets), len(masks)]
        if lengths != [self.num_levels] * 3:
            got = "{} predictions, {} targets and {} masks".format(*lengths)
            raise ConfigError(f"expected one entry for each of {self.num_levels} levels, got {got}")
        for i, (prediction, target, mask) in enumerate(zip(predictions, targets, masks, strict=True)):
            self._add_level(i, prediction.detach(), target.detach(), mask, ids)

    def _add_level(
        self, i: int, prediction: Tensor, target: Tensor, valid: Tensor | None, ids: Tensor | None
    ) -> None:
        lead = self._check(i, prediction, target, valid)
        device = prediction.device
        kept = torch.ones(lead, dtype=torch.bool, device=device) if valid is None else valid
        kept = moved(kept, device, torch.bool)
        labels = None if ids is None else _labels(ids, lead, device)
        wide = torch.promote_types(prediction.dtype, target.dtype)
        blocks = feature_blocks(prediction.to(wide), kept, labels)
        others = feature_blocks(target.to(wide), kept, None)
        for (p, mask, named), (t, _, _) in zip(blocks, others, strict=True):
            self._add_tokens(i, p, t, mask, named)

    def _add_tokens(self, i: int, p: Tensor, t: Tensor, kept: Any, labels: Tensor | None) -> None:
        """Add tokens [B, N, D] of one level; `labels` [B, N, 2] are their images and patches."""
        p_unit, t_unit = unit_rows(p), unit_rows(t)
        cosine = cosines(p_unit, t_unit)
        squared = (p_unit - t_unit).square()
        # A row of zeros has no direction: to any other it is as far as a right angle.
        zeros = (p_unit == 0).all(dim=-1).to(torch.float64) + (t_unit == 0).all(dim=-1)
        self.states[f"cosine{i}"].update(cosine, kept)
        self.states[f"error{i}"].update(squared.mean(dim=-1), kept)
        self.states[f"apart{i}"].update(squared.sum(dim=-1) + zeros, kept)
        self.states[f"distance{i}"].update(row_norms(p.to(torch.float64) - t.to(torch.float64)), kept)
        self.states[f"histogram{i}"].update(cosine, kept)
        if cosine.numel():
            self.states[f"low{i}"].update(cosine.masked_fill(~kept, float("inf")).amin())
            self.states[f"high{i}"].update(cosine.masked_fill(~kept, float("-inf")).amax())
        if self.dims is not None:
            self.states[f"joint{i}"].update(torch.cat([p, t], dim=-1), kept)
        if labels is not None:
            self.states[f"hardest{i}"].update(cosine, labels, kept)
            self.states[f"easiest{i}"].update(-cosine, labels, kept)

    def _check(self, i: int, prediction: Tensor, target: Tensor, valid: Tensor | None) -> torch.Size:
        width = "D" if self.dims is None else str(self.dims[i])
        wrong = prediction.ndim != 3 or prediction.shape != target.shape
        if wrong or (self.dims is not None and prediction.shape[-1] != self.dims[i]):
            got = f"{list(prediction.shape)} and {list(target.shape)}"
            raise ConfigError(f"level {i}: expected prediction and target [B, N, {width}], got {got}")
        lead = prediction.shape[:2]
        if valid is not None and valid.shape != lead:
            raise ConfigError(f"level {i}: expected valid as {list(lead)}, got {list(valid.shape)}")
        return lead

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Read the merged moments; {} where there is no valid token."""
        present = [i for i in range(self.num_levels) if states[f"cosine{i}"].count]
        if not present:
            return {}
        tags: dict[str, Any] = {}
        for i in present:
            tags |= {f"prediction/level{i}_{name}": v for name, v in self._level(i, states).items()}
            tags[f"collapse/level{i}_alignment"] = states[f"apart{i}"].mean
        count = sum(states[f"apart{i}"].count for i in present)
        total = sum(states[f"apart{i}"].count * states[f"apart{i}"].mean for i in present)
        return {**tags, "collapse/alignment": total / count}

    def _level(self, i: int, states: Mapping[str, Any]) -> dict[str, Any]:
        cosine, histogram = states[f"cosine{i}"], states[f"histogram{i}"]
        squares = cosine.variance * max(cosine.count - 1, 0) + cosine.count * cosine.mean**2
        tags: dict[str, Any] = {
            "cosine_sim_mean": cosine.mean,
            "cosine_sim_std": cosine.std,
            "cosine_sim_min": states[f"low{i}"].value,
            "cosine_sim_max": states[f"high{i}"].value,
            "normalized_mse": states[f"error{i}"].mean,
            "l2_distance": states[f"distance{i}"].mean,
            "num_tokens": cosine.count,
            "nonfinite": cosine.nonfinite,
            "similarity_histogram": histogram_value(histogram, cosine.mean * cosine.count, squares),
        }
        if self.dims is not None:
            joint, _ = states[f"joint{i}"].scaled()
            tags["cka"] = linear_cka(joint.matrix, self.dims[i])
            debiased = debiased_cka(joint)
            tags |= {} if debiased is None else {"cka_debiased": debiased}
        if len(states[f"hardest{i}"].scores):
            tags["extreme_patches"] = Text(_table(*extremes(states, i)))
        return tags


Patches = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]


def extremes(states: Mapping[str, Any], level: int) -> tuple[Patches, Patches]:
    """Return the hardest and the easiest tokens of merged states: cosines [k], and [k, 2] image and patch."""
    hardest, easiest = states[f"hardest{level}"], states[f"easiest{level}"]
    return (hardest.scores, hardest.labels), (-easiest.scores, easiest.labels)


def gram_matrices(states: Mapping[str, Any], level: int) -> dict[str, npt.NDArray[np.float64]]:
    """Return the feature correlations [D, D] of "prediction" and "target" at a level of merged states."""
    joint = states[f"joint{level}"].matrix
    dim = joint.shape[0] // 2
    return {"prediction": correlation(joint[:dim, :dim]), "target": correlation(joint[dim:, dim:])}


def _labels(ids: Tensor, lead: torch.Size, device: torch.device) -> Tensor:
    if tuple(ids.shape) != (lead[0],):
        raise ConfigError(f"expected ids of shape [{lead[0]}], got {list(ids.shape)}")
    images = moved(ids, device)[:, None].expand(lead)
    return torch.stack([images, torch.arange(lead[1], device=device).expand(lead)], dim=-1)


def _table(hardest: Patches, easiest: Patches) -> str:
    rows = ["| | image | patch | cosine |", "|---|---|---|---|"]
    for title, (scores, labels) in (("hardest", hardest), ("easiest", easiest)):
        for score, (image, patch) in zip(scores, labels, strict=True):
            rows.append(f"| {title} | {image} | {patch} | {score:.4f} |")
    return "\n".join(rows)


_prediction = partial(Entry, dashboard="prediction", family="representations")
_figure = partial(Entry, kind="image", family="figures")
_VALID = "over the masked, unpadded tokens of all ranks."

ENTRIES = (
    _prediction(
        "prediction/level{i}_cosine_sim_mean",
        "cosine of prediction and target, level {i}",
        f"Mean cosine between predicted and target token {_VALID}",
        healthy="rises towards 1; near 1 at once, with collapse/mean_similarity near 1, is collapse",
    ),
    _prediction(
        "prediction/level{i}_cosine_sim_std", "its spread", f"Standard deviation of the cosine {_VALID}"
    ),
    _prediction("prediction/level{i}_cosine_sim_min", "its smallest", f"Smallest cosine {_VALID}"),
    _prediction("prediction/level{i}_cosine_sim_max", "its largest", f"Largest cosine {_VALID}"),
    _prediction(
        "prediction/level{i}_normalized_mse",
        "squared error of directions, level {i}",
        f"Mean squared difference of the L2-normalised features, (2 - 2 cosine) / D, {_VALID}",
        healthy="falls",
    ),
    _prediction(
        "prediction/level{i}_l2_distance",
        "distance of prediction and target, level {i}",
        f"L2 norm of the difference, mean {_VALID}",
        healthy="falls against hierarchy/level{i}_feat_norm",
    ),
    _prediction(
        "prediction/level{i}_cka",
        "CKA of prediction and target, level {i}",
        f"Linear CKA between predicted and target tokens {_VALID}",
        source="arXiv 1905.00414",
        healthy="rises towards 1",
    ),
    _prediction(
        "prediction/level{i}_cka_debiased",
        "debiased CKA of prediction and target, level {i}",
        f"Linear CKA from unbiased estimates of the HSIC, of fewer tokens too, {_VALID}",
        source="arXiv 2010.15327",
        healthy="rises towards 1; near 0 predictions have nothing of their targets",
    ),
    _prediction(
        "prediction/level{i}_num_tokens", "tokens compared, level {i}", "Valid tokens.", unit="tokens"
    ),
    _prediction(
        "prediction/level{i}_similarity_histogram",
        "distribution of the cosine, level {i}",
        f"Counts of the cosine between prediction and target {_VALID}",
        kind="histogram",
        family="histograms",
        dashboard="",
    ),
    _prediction(
        "prediction/level{i}_nonfinite",
        "nonfinite tokens, level {i}",
        f"NaN and infinite cosines {_VALID}",
        healthy="0",
        bounds=NOTHING,
    ),
    _prediction(
        "prediction/level{i}_extreme_patches",
        "hardest and easiest patches, level {i}",
        f"Image, patch and cosine of the tokens that match worst and best {_VALID}",
        kind="text",
        dashboard="",
        healthy="different images; one image again and again is a bad sample",
    ),
    _figure(
        "prediction/most_difficult_patches",
        "hardest patches",
        "Crops of the patches with the lowest cosine, of all ranks.",
    ),
    _figure(
        "prediction/easiest_patches",
        "easiest patches",
        "Crops of the patches with the highest cosine, of all ranks.",
    ),
    _figure(
        "prediction/level{i}_gram_{name}",
        "Gram matrix of level {i}",
        "Correlation between features of the predictions or the targets.",
        healthy="dark off the diagonal; bright blocks are redundant features",
    ),
    _figure(
        "patches/similarity_heatmap",
        "prediction quality over the image",
        "Cosine between prediction and target for each patch of one image.",
        healthy="without places that are dark in every image",
    ),
    _figure(
        "embeddings/{name}_pred_vs_target",
        "map of predictions and targets",
        "Both projected to two dimensions (PCA by default), coloured by level.",
        healthy="the two clouds lie on each other and are spread out",
    ),
)
