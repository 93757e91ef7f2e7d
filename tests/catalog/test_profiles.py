"""Profiles: told from the tags, and what each shows of the catalog."""

import pytest

from hjepa_dist_metrics import catalog
from hjepa_dist_metrics.catalog.dashboards import load_dashboards, profile_layout


@pytest.mark.parametrize(
    ("tag", "profile"),
    [
        ("ema/cosine", "ssl"),
        ("masking/mask_ratio", "ssl"),
        ("hierarchy/level0_effective_rank", "ssl"),
        ("prediction/level0_cosine_sim_mean", "ssl"),
        ("loss/h0", "ssl"),
        ("loss/total", "supervised"),
        ("loss/head", "supervised"),
        ("collapse/effective_rank", "supervised"),
        ("performance/tokens_per_second", "language"),
    ],
)
def test_the_profile_is_told_from_the_tags(tag, profile):
    assert catalog.observed_profile(["loss/total", tag]) == profile
    assert catalog.observed_profile(["performance/tokens_per_second", tag]) in (profile, "language")


def test_self_supervised_runs_have_every_dashboard():
    assert profile_layout("ssl", [], 2) == load_dashboards("default", 2)
    assert catalog.how_to_read() == catalog.how_to_read("ssl", ["loss/total"])


@pytest.mark.parametrize("profile", ["supervised", "language"])
def test_others_have_those_that_they_can_fill(profile):
    titles = ["Loss", "Gradient flow", "Learning rate", "Stability", "Performance"]
    assert list(profile_layout(profile, ["loss/total"])) == titles
    assert list(profile_layout(profile, ["collapse/rankme"])) == ["Loss", "Collapse", *titles[1:]]
    probed = profile_layout(profile, ["probe/encoder_knn_top1"])
    assert list(probed) == ["Loss", "Probes", *titles[1:]]
    charts = profile_layout(profile, ["loss/total"])["Loss"]
    assert "By level" not in charts
    assert charts["Total and unweighted"] == ["Multiline", ["^loss/total$"]]


def test_the_page_tells_of_collapse_where_features_are_measured():
    without, with_features = (
        catalog.how_to_read("supervised", [tag]) for tag in ("loss/total", "collapse/effective_rank")
    )
    assert "collapse" not in without
    assert "collapse/effective_rank" in with_features
    for page in (without, with_features):
        assert "nonfinite" in page
        assert "loss/total" in page
        assert "frozen_teacher" not in page
