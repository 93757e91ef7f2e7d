"""A tag's limits in a run are those of the run's own sizes."""

import pytest

from hjepa_dist_metrics.catalog import effective_rank_limits, mean_similarity_limits, straggler_limits
from hjepa_dist_metrics.catalog.run_limits import healthy_range, limits_of

LATEST = {
    "collapse/num_features": 64.0,
    "collapse/num_samples": 2048.0,
    "collapse/pooled_num_samples": 33.0,
    "collapse/context_num_features": 128.0,
    "collapse/context_num_samples": 100.0,
}


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("collapse/effective_rank", effective_rank_limits(64, 2048)),
        ("collapse/context_effective_rank", effective_rank_limits(128, 100)),
        ("collapse/mean_similarity", mean_similarity_limits(64, 2048)),
        ("collapse/level0_effective_rank", None),  # its sizes are not logged
        ("performance/straggler_score", straggler_limits(0, 0)),
        ("loss/total", None),
        ("own/tag", None),
    ],
)
def test_limits_follow_the_stream_of_the_tag(tag, expected):
    assert limits_of(tag, LATEST) == expected


def test_counts_that_must_be_zero_and_both_sides_are_worded():
    nothing = limits_of("gradient/nonfinite_steps", {})
    assert nothing is not None
    assert healthy_range(nothing) == "0"
    assert healthy_range(effective_rank_limits(64, 2048)) == "above 16"
    assert healthy_range(mean_similarity_limits(64, 2048)) == "below 0.5"
