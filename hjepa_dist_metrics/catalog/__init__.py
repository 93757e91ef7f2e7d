"""One entry for each tag: the single source of meanings, units, healthy ranges and dashboards.

`find(tag)` says what a tag is; TensorBoard's layouts, the alerts' bounds, the README's table and the page
in every run come from here. Sources: S0 is the H-JEPA TensorBoard enhancement document, by section, S1 its
quick reference, S2 the guide to the dual-head
model, S3 the guide to text, image and audio; papers by their arXiv number.
"""

from __future__ import annotations

import difflib
import functools

from hjepa_dist_metrics.catalog import (
    collapse,
    ema,
    gradients,
    heads,
    hierarchy,
    losses,
    masking,
    modalities,
    performance,
    prediction,
)
from hjepa_dist_metrics.catalog.entry import (
    PLACEHOLDERS as PLACEHOLDERS,
    Entry as Entry,
    Family as Family,
    Kind as Kind,
    Limits as Limits,
    Verdict as Verdict,
    to_regex as to_regex,
)
from hjepa_dist_metrics.catalog.limits import (
    GRADIENT_NORM_RANGE as GRADIENT_NORM_RANGE,
    HEAD_RATIO_RANGE as HEAD_RATIO_RANGE,
    best_rank as best_rank,
    effective_rank_limits as effective_rank_limits,
    mean_similarity_limits as mean_similarity_limits,
    mean_std_limits as mean_std_limits,
    psnr_gap_limits as psnr_gap_limits,
    similarity_gap_limits as similarity_gap_limits,
    similarity_limits as similarity_limits,
    straggler_limits as straggler_limits,
)
from hjepa_dist_metrics.catalog.render import explain_entry, how_to_read_page, markdown_table as _table
from hjepa_dist_metrics.catalog.rules import ALERT_RULES as ALERT_RULES
from hjepa_dist_metrics.errors import ConfigError

DASHBOARDS = (
    "loss",
    "ema",
    "masking",
    "hierarchy",
    "prediction",
    "collapse",
    "gradient_flow",
    "learning_rate",
    "stability",
    "performance",
)

# Shown where a run's configuration names them: they are about one workload.
MULTIMODAL_DASHBOARDS = (
    "multimodal_training",
    "multimodal_embeddings",
    "multimodal_optimization",
    "multimodal_alignment",
)
DUAL_HEAD_DASHBOARDS = (
    "dual_head_overview",
    "dual_head_loss_breakdown",
    "dual_head_gradients",
    "dual_head_evaluation",
    "dual_head_statistics",
    "dual_head_distributions",
)
ALL_DASHBOARDS = (*DASHBOARDS, *DUAL_HEAD_DASHBOARDS, *MULTIMODAL_DASHBOARDS)

_ENTRIES: tuple[Entry, ...] = (
    *losses.LOSS,
    *losses.SHORT_LIST,
    *ema.EMA,
    *masking.MASKING,
    *hierarchy.HIERARCHY,
    *prediction.PREDICTION,
    *collapse.COLLAPSE,
    *collapse.SHORT_LIST,
    *gradients.GRADIENTS,
    *gradients.LEARNING_RATE,
    *losses.STABILITY,
    *heads.HEADS,
    *heads.FRAMES,
    *modalities.MODALITIES,
    *modalities.ALIGNMENT,
    *modalities.SAMPLES,
    *performance.PERFORMANCE,
    *performance.SYSTEM,
    *performance.SYNC,
    *performance.OTHER,
)
# The most specific pattern first: `gradients/{module}_mean` before `gradients/{name}`.
_BY_LENGTH = sorted(_ENTRIES, key=lambda entry: (entry.is_pattern, -entry.literal_length))


def entries(family: Family | None = None) -> tuple[Entry, ...]:
    """Return all entries in reading order, or those of one cadence family."""
    return tuple(entry for entry in _ENTRIES if family in (None, entry.family))


@functools.lru_cache(maxsize=4096)  # a run asks of the same tags at every log
def find(tag: str) -> Entry | None:
    """Return the entry that speaks of `tag`, the most specific one, or None."""
    return next((entry for entry in _BY_LENGTH if entry.matches(tag)), None)


def find_pattern(tag: str) -> Entry | None:
    """Return the entry whose pattern is `tag` itself (`loss/h{i}`), else what `find` returns."""
    return next((entry for entry in _ENTRIES if entry.pattern == tag), None) or find(tag)


def chart_regex(pattern: str) -> str:
    """Return the pattern's regular expression, for Python and JavaScript, less tags with own entries.

    `loss/train/{name}` stands for the terms of a loss, and not for `loss/train/epoch_mean`.
    """
    entry = find_pattern(pattern)
    matched = [e for e in _ENTRIES if entry is not None and e is not entry and not e.is_pattern]
    own = [to_regex(e.pattern) for e in matched if entry is not None and entry.matches(e.pattern)]
    whole = to_regex(pattern)
    return f"^(?!{'|'.join(regex[1:] for regex in own)}){whole[1:]}" if own else whole


def explain(tag: str) -> str:
    """Return several lines on a tag or pattern; raises ConfigError, naming near tags, for an unknown one."""
    entry = find_pattern(tag)
    if entry is None:
        raise ConfigError(f"no metric has the tag {tag!r}; {suggest(tag)}")
    return explain_entry(tag, entry)


def markdown_table(chosen: tuple[Entry, ...] | None = None) -> str:
    """Return the README's table of metrics, of all entries or of those given."""
    return _table(_ENTRIES if chosen is None else chosen)


def how_to_read() -> str:
    """Return the Markdown page that every run carries in its TEXT tab."""
    return how_to_read_page(DASHBOARDS, [entry for entry in _ENTRIES if "{name}" not in entry.pattern])


def suggest(tag: str) -> str:
    """Return a hint for an unknown tag: the nearest known ones."""
    near = difflib.get_close_matches(tag, [entry.pattern for entry in _ENTRIES], n=3, cutoff=0.4)
    return "near ones: " + ", ".join(near) if near else "`explain` takes tags such as collapse/effective_rank"
