"""Attention of a model's heads: entropy, largest logit, and keys that take the attention of all queries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import Tensor, nn

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.metrics.internals.attention_calls import AttentionCalls
from hjepa_dist_metrics.metrics.internals.attention_summary import (
    HeadNumbers,
    head_numbers,
    per_layer_tags,
    summary_tags,
)
from hjepa_dist_metrics.metrics.internals.hooks import Hooks, Run, run_always
from hjepa_dist_metrics.metrics.kernels.heads import Scores, head_statistics, scores_of
from hjepa_dist_metrics.metrics.validation import require_features
from hjepa_dist_metrics.parallel import ParallelLayout
from hjepa_dist_metrics.parallel.layout import as_names
from hjepa_dist_metrics.states import HeadSums, NamedRows, Sum


class AttentionStatistics(DistributedMetric):
    """Describe each head's attention over all queries of all ranks, from queries and keys.

    Of each head: the entropy -sum p log p of a query's weights over the keys that it sees, mean, in nats
    (Zhai et al., arXiv 2303.06296); the relative entropy, that over its largest value, the logarithm of the
    number of keys; the largest logit q k / sqrt(d) (Dehghani et al., arXiv 2302.05442); and the sink, the
    largest mean share that one key has of all queries' attention, mean over samples (arXiv 2309.17453), with
    the key that it mostly is.

    Tags under `attention/`: the lowest, the median and the highest of these over all heads, the histograms
    `entropy` and `logit` of the heads, and the texts `lowest_entropy`, `largest_logit` and `strongest_sink`,
    which name layer and head. `per_layer` adds the mean over the heads of each layer, `{module}_entropy`,
    `{module}_sink`, and the largest `{module}_logit`.

    Seen is every attention of the forward passes in the body that calls
    `scaled_dot_product_attention` or nn.MultiheadAttention, and eager code that calls softmax in a module
    that is named after attention: timm's, Hugging Face's, the reference's. Outputs stay the same to the bit,
    but for torch's own fast path of inference. Compiled models run eagerly in the body. Weights are computed
    for a block of queries at a time, in float32. Padding among the queries counts. With a `layout` whose
    `tensor` ranks hold other heads, heads are numbered through.

    >>> model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> statistics = AttentionStatistics(model)
    >>> with statistics.watching():  # hooks are on the model in the body alone
    ...     output = model(torch.zeros(1, 4, 8))
    >>> round(statistics.compute()["attention/relative_entropy_median"], 4)
    1.0
    """

    def __init__(
        self, model: nn.Module, *, per_layer: bool = False, layout: ParallelLayout | None = None
    ) -> None:
        self.model, self.per_layer = model, per_layer
        self._place, self._parts = _share_of_heads(layout)
        self._hooks = Hooks()
        self.add_state("heads", NamedRows(HeadSums))
        self.add_state("sinks", NamedRows(Sum, grows=True))

    def watching(self) -> AbstractContextManager[None]:
        """Have hooks on the modules during the body, and look at their attention."""
        return self._hooks.during(partial(self.hooks, [self]))

    def hooks(self, metrics: Sequence[AttentionStatistics], run: Run = run_always) -> Iterator[Any]:
        """Add hooks that hand attention to `metrics`, made for the same model, and yield their handles.

        `run` runs their updates.
        """

        def record(layer: str, scores: Scores) -> None:
            for metric in metrics:
                run(partial(metric.update_scores, layer, scores))

        yield from AttentionCalls(self.model, record).hooks()

    def update(
        self,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        scale: float | None = None,
        *,
        layer: str = "attention",
    ) -> None:
        """Add a layer's query [B, heads, N, d] and key [B, heads, M, d]; fewer key heads are shared.

        The other arguments are those of `scaled_dot_product_attention`: `mask` is bool, True where a query
        sees a key, or numbers to add.
        """
        require_features("query", query)
        require_features("key", key)
        if query.ndim != key.ndim or query.ndim < 3 or query.shape[-1] != key.shape[-1]:
            raise ConfigError(
                "expected query [B, heads, N, d] and key [B, heads, M, d], got "
                f"{list(query.shape)} and {list(key.shape)}"
            )
        self.update_scores(layer, scores_of(query, key, mask, causal, scale))

    def update_scores(self, layer: str, scores: Scores) -> None:
        """Add a layer's scores, as `scores_of` makes them; none change nothing."""
        if scores.batch and scores.queries and scores.keys:
            heads, sinks = head_statistics(scores)
            self.heads.update(layer, self._placed(heads, HeadSums, 1))
            self.sinks.update(layer, self._placed(sinks[None], Sum, len(sinks) // scores.heads))

    def _placed(self, block: Tensor, kind: type[HeadSums] | type[Sum], repeats: int) -> Tensor:
        """Return a block of this rank's heads as one of all; `repeats` times as many columns as heads."""
        if self._parts == 1:
            return block
        own = block.shape[1] // repeats
        whole = kind((repeats * own * self._parts,)).data.to(block.device, non_blocking=True)
        places = whole.view(-1, repeats, self._parts, own)
        places[:, :, self._place] = block.view(-1, repeats, own)
        return whole

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tags; {} before the first update."""
        heads = self.head_numbers(states)
        if not heads:
            return {}
        return summary_tags(heads) | (per_layer_tags(heads) if self.per_layer else {})

    def head_numbers(self, states: Mapping[str, Any]) -> list[HeadNumbers]:
        """Return the numbers of all heads, layer by layer."""
        return head_numbers(states["heads"], states["sinks"])


def _share_of_heads(layout: ParallelLayout | None) -> tuple[int, int]:
    """Return which share of each layer's heads this rank holds, and of how many."""
    place, parts = 0, 1
    for name in as_names(layout.tensor) if layout is not None else ():
        size = layout.grid.size(name)  # type: ignore[union-attr]
        place, parts = place * size + layout.grid.coordinate(name), parts * size  # type: ignore[union-attr]
    return place, parts
