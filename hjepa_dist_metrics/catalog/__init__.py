"""One entry for each tag: the single source of meanings, units, healthy ranges and dashboards.

`find(tag)` returns a tag's entry; TensorBoard's layouts, the alerts' limits, `TAGS.md` and the page in every
run are made from the entries. They are written beside the metrics, see `registry`.
"""

from __future__ import annotations

from hjepa_dist_metrics.catalog.dashboards import (
    ALL_DASHBOARDS as ALL_DASHBOARDS,
    DASHBOARDS as DASHBOARDS,
    DUAL_HEAD_DASHBOARDS as DUAL_HEAD_DASHBOARDS,
    MULTIMODAL_DASHBOARDS as MULTIMODAL_DASHBOARDS,
    REQUESTED_DASHBOARDS as REQUESTED_DASHBOARDS,
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
from hjepa_dist_metrics.catalog.findings import FINDINGS as FINDINGS, GROUPS as GROUPS
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
from hjepa_dist_metrics.catalog.profiles import (
    PROFILES as PROFILES,
    Profile as Profile,
    observed_profile as observed_profile,
)
from hjepa_dist_metrics.catalog.registry import (
    chart_regex as chart_regex,
    entries as entries,
    find as find,
    find_pattern as find_pattern,
    suggest as suggest,
)
from hjepa_dist_metrics.catalog.render import (
    describe as describe,
    explain as explain,
    how_to_read as how_to_read,
    markdown_table as markdown_table,
)
