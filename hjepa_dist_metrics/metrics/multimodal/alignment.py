"""Embeddings of several modalities: how they spread, and whether those of one sample find each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.catalog.limits import NOTHING
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.metrics.multimodal.modalities import matched_rows, modality_names
from hjepa_dist_metrics.metrics.multimodal.retrieval import diagonal_contrast, heatmap, recall_at
from hjepa_dist_metrics.metrics.ssl.formulas.rows import cosines, row_norms, unit_rows
from hjepa_dist_metrics.states import Lazy, Moments, Sample, Sum, of_width, resolved
from hjepa_dist_metrics.states.base import moved

RECALLS = (1, 5)
DEFAULT_PAIRS = 256
_DRAWN = 64  # pairs of a similarity matrix in a picture


class ModalityEmbeddings(DistributedMetric):
    """Describe the embeddings [B, D] of each modality as they are, not normalised.

    `embeddings/{name}/mean`: of all elements; `/std`: over samples for each dimension, mean over dimensions
    (a std over everything stays near 1 for an encoder that is blind to its input); `/norm`: mean L2 norm;
    `embeddings/nonfinite`: rows of any modality with a NaN or an infinity. Widths may differ; `dims` gives
    them, one for all or by name, where ranks may be without a sample and many.

    >>> embeddings = ModalityEmbeddings(["image", "text"])
    >>> embeddings.update({"image": 2.0 * torch.eye(4), "text": torch.eye(4)})
    >>> values = embeddings.compute()
    >>> values["embeddings/image/norm"], values["embeddings/text/norm"]
    (2.0, 1.0)
    """

    def __init__(self, names: Sequence[str], dims: int | Mapping[str, int] | None = None) -> None:
        self.names = modality_names(names)
        widths = dims if isinstance(dims, Mapping) else dict.fromkeys(self.names, dims)
        if set(widths) != set(self.names):
            raise ConfigError(f"expected the widths of {list(self.names)}, got {dict(widths)}")
        for place, name in enumerate(self.names):
            self.add_state(f"rows{place}", of_width(widths[name], Moments, shape=[Lazy.WIDTH]))
        self.add_state("norms", Moments((len(self.names),)))

    def update(self, embeddings: Mapping[str, Tensor], valid: Tensor | None = None) -> None:
        """Add a batch by modality; `valid` [B] leaves padding out."""
        rows = [tensor.detach() for tensor in matched_rows(embeddings, self.names, same_width=False)]
        for place, tensor in enumerate(rows):
            self.states[f"rows{place}"].update(tensor, valid)
        norms = torch.stack([row_norms(tensor) for tensor in rows], dim=1)
        self.norms.update(norms, valid)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Average over dimensions; {} where there is no row."""
        if not states["norms"].count.any():
            return {}
        tags: dict[str, Any] = {"embeddings/nonfinite": states["norms"].nonfinite.sum()}
        for place, name in enumerate(self.names):
            moments = resolved(states[f"rows{place}"])
            tags[f"embeddings/{name}/mean"] = moments.mean.mean()
            tags[f"embeddings/{name}/std"] = moments.std.mean()
            tags[f"embeddings/{name}/norm"] = states["norms"].mean[place]
        return tags


class ModalityAlignment(DistributedMetric):
    """Compare embeddings [B, D] of the same samples by modality; every tag is about two of them, a and b.

    Exact over all samples of all ranks: `alignment/{a}_vs_{b}/diagonal_similarity`, mean cosine of a sample's
    two embeddings; `/mean_similarity`, mean cosine over ALL n * n pairs, (sum a) . (sum b) / n^2 on unit
    rows; `/modality_gap`, distance between the two means of unit rows (Liang et al., 2203.02053);
    `alignment/num_pairs`, `alignment/nonfinite`.

    On a uniform sample of `sample` samples over all ranks: `/recall_at_{k}_{a}_to_{b}`, how often a row of a
    finds its own among the k most similar rows of b, and the other way; `/diagonal_contrast`;
    `/similarity_matrix`, a picture of the first 64; `alignment/recall_at_{k}_chance`. `dim` is the width,
    where ranks may be without a sample and many.

    >>> alignment = ModalityAlignment(["image", "text"])
    >>> alignment.update({"image": torch.eye(3), "text": torch.eye(3)})  # each pair is one point
    >>> values = alignment.compute()
    >>> values["alignment/image_vs_text/diagonal_similarity"]
    1.0
    """

    def __init__(
        self, names: Sequence[str], dim: int | None = None, sample: int = DEFAULT_PAIRS, seed: int = 0
    ) -> None:
        self.names = modality_names(names, least=2)
        self.pairs = list(combinations(range(len(self.names)), 2))
        count = len(self.names)
        self.add_state("sums", of_width(dim, Sum, shape=[count, Lazy.WIDTH]))
        self.add_state("diagonals", Moments((len(self.pairs),)))
        joint = None if dim is None else dim * count
        self.add_state("sample", of_width(joint, Sample, capacity=sample, dim=Lazy.WIDTH, seed=seed))

    def update(
        self, embeddings: Mapping[str, Tensor], valid: Tensor | None = None, ids: Tensor | None = None
    ) -> None:
        """Add a batch by modality; `valid` [B] leaves padding out, `ids` [B] are the samples' global numbers.

        Without `ids` the sample is drawn by the rows' content: as good, but equal rows stay or go together.
        """
        rows = [unit_rows(tensor) for tensor in matched_rows(embeddings, self.names, same_width=True)]
        stacked = torch.stack(rows, dim=1)
        kept = stacked if valid is None else torch.where(_column(valid, stacked), stacked, 0.0)
        self.sums.update(kept)
        diagonal = [cosines(rows[a], rows[b]) for a, b in self.pairs]
        self.diagonals.update(torch.stack(diagonal, dim=1), valid)
        self.sample.update(stacked.flatten(start_dim=1), valid, ids=ids)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Apply the formulas to merged sums and sample; {} where there is no pair."""
        count = int(states["diagonals"].count[0])
        if count == 0:
            return {}
        bad = states["diagonals"].nonfinite.sum()
        tags: dict[str, Any] = {"alignment/num_pairs": count, "alignment/nonfinite": bad}
        means = resolved(states["sums"]).value / count
        sample = resolved(states["sample"]).rows_kept
        rows = unit_rows(sample.reshape(-1, *means.shape)).numpy()  # which rounding to float32 has moved
        if len(rows) > 1:
            tags |= {f"alignment/recall_at_{k}_chance": k / len(rows) for k in RECALLS if k < len(rows)}
            tags["alignment/sample_pairs"] = len(rows)
        for place, (a, b) in enumerate(self.pairs):
            prefix = f"alignment/{self.names[a]}_vs_{self.names[b]}/"
            tags[prefix + "diagonal_similarity"] = states["diagonals"].mean[place]
            tags[prefix + "mean_similarity"] = means[a] @ means[b]
            tags[prefix + "modality_gap"] = np.linalg.norm(means[a] - means[b])
            if len(rows) > 1:
                found = self._sampled(rows[:, a] @ rows[:, b].T, self.names[a], self.names[b])
                tags |= {prefix + name: value for name, value in found}
        return tags

    @staticmethod
    def _sampled(similarity: Any, a: str, b: str) -> Iterator[tuple[str, Any]]:
        for k in RECALLS:
            if k < len(similarity):
                yield f"recall_at_{k}_{a}_to_{b}", recall_at(similarity, k)
                yield f"recall_at_{k}_{b}_to_{a}", recall_at(similarity.T, k)
        yield "diagonal_contrast", diagonal_contrast(similarity)
        yield "similarity_matrix", heatmap(similarity[:_DRAWN, :_DRAWN])


def _column(valid: Tensor, rows: Tensor) -> Tensor:
    if tuple(valid.shape) != tuple(rows.shape[:1]):
        raise ConfigError(f"expected a valid mask of shape {[len(rows)]}, got {list(valid.shape)}")
    return moved(valid, rows.device, torch.bool)[:, None, None]


_embedding = partial(Entry, dashboard="multimodal_embeddings")
_alignment = partial(Entry, dashboard="multimodal_alignment", family="representations")

ENTRIES = (
    _embedding(
        "embeddings/{name}/mean",
        "mean of the embeddings of {name}",
        "Mean of all elements of the embeddings, before normalisation.",
        healthy="near 0",
    ),
    _embedding(
        "embeddings/{name}/std",
        "spread of the embeddings of {name}",
        "Standard deviation over samples for each dimension, mean over dimensions.",
        healthy="holds; falling towards 0 is collapse",
        deviation="often one std over all elements, which stays high where the embeddings ignore the input",
    ),
    _embedding(
        "embeddings/{name}/norm",
        "norm of the embeddings of {name}",
        "L2 norm of an embedding before normalisation, mean over samples.",
        healthy="stable; towards 0 is collapse",
    ),
    _embedding(
        "embeddings/nonfinite",
        "nonfinite embeddings",
        "Embeddings of any modality with a NaN or an infinity since the last log.",
        healthy="0",
        bounds=NOTHING,
    ),
    _alignment(
        "alignment/{a}_vs_{b}/diagonal_similarity",
        "similarity of right pairs, {a} and {b}",
        "Mean cosine between the two embeddings of the same sample, over all samples of all ranks.",
        healthy="rises well above mean_similarity",
    ),
    _alignment(
        "alignment/{a}_vs_{b}/mean_similarity",
        "similarity of all pairs, {a} and {b}",
        "Mean cosine over ALL pairs of samples of all ranks: (sum a) . (sum b) / n^2 on unit rows, exact.",
        healthy="falls towards 0; near diagonal_similarity samples cannot be distinguished",
        deviation="often the mean over one rank's batch",
    ),
    _alignment(
        "alignment/{a}_vs_{b}/modality_gap",
        "gap between {a} and {b}",
        "Distance between the mean unit embeddings of the two modalities.",
        source="arXiv 2203.02053",
        healthy="small; about 1 and more means two cones apart, which retrieval may survive",
    ),
    _alignment(
        "alignment/{a}_vs_{b}/diagonal_contrast",
        "contrast of the diagonal, {a} and {b}",
        "(mean of the diagonal - mean of the rest) / std of the rest, of the sample's similarity matrix.",
        unit="standard deviations",
        healthy="above 1; within 3 / sqrt(alignment/sample_pairs) of 0 there is no diagonal at all",
    ),
    _alignment(
        "alignment/{a}_vs_{b}/recall_at_{i}_{from}_to_{to}",
        "recall at {i}, {from} to {to}",
        "How often a sample's own embedding is among the i most similar ones of the other modality, in a "
        "uniform sample over all ranks; of equal ones each is as likely to come first.",
        healthy="rises above alignment/recall_at_{i}_chance; samples that mean the same share its place",
    ),
    _alignment(
        "alignment/{a}_vs_{b}/similarity_matrix",
        "similarity matrix, {a} and {b}",
        "Cosines of a uniform sample over all ranks, rows a, columns b: red 1, white 0, blue -1.",
        kind="image",
        dashboard="",
        healthy="a red diagonal on a pale ground",
    ),
    _alignment(
        "alignment/recall_at_{i}_chance",
        "recall at {i} of a guess",
        "i over the number of sampled pairs.",
    ),
    _alignment(
        "alignment/num_pairs", "samples compared", "Samples of all ranks that the exact numbers are of."
    ),
    _alignment("alignment/sample_pairs", "samples drawn", "Samples that recall, contrast and matrix are of."),
    _alignment(
        "alignment/nonfinite",
        "nonfinite similarities",
        "Right pairs whose cosine is NaN or infinite.",
        healthy="0",
        bounds=NOTHING,
    ),
)
