"""Profiles: told from the tags, and what each shows of the catalog."""

import pytest

from hjepa_dist_metrics import catalog
from hjepa_dist_metrics.catalog.dashboards import DASHBOARDS, load_dashboard, observed_layout

BAND = ("mean", "min", "max")


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


def layout(profile, tags):
    return observed_layout([load_dashboard(name) for name in DASHBOARDS], tags, 2, profile)


def test_the_page_is_of_self_supervised_runs_by_default():
    assert catalog.how_to_read() == catalog.how_to_read("ssl", ["loss/total"])


@pytest.mark.parametrize("profile", ["supervised", "language"])
def test_others_have_those_that_they_can_fill(profile):
    assert list(layout(profile, ["loss/total"])) == ["Health", "Loss"]
    assert list(layout(profile, ["loss/total", "collapse/rankme"])) == ["Health", "Loss", "Collapse"]
    charts = layout(profile, ["loss/total", "loss/h0", "loss/unweighted"])["Loss"]
    assert charts == {"Total and unweighted": ["Multiline", ["^loss/total$"]]}
    assert layout(profile, ["accuracy"]) == {}
    assert "Probes" in layout(profile, ["probe/encoder_knn_top1"])


def test_a_chart_has_the_lines_that_have_data():
    tags = ["loss/total", "loss/h0", "loss/h1", *(f"prediction/level1_cosine_sim_{n}" for n in BAND)]
    found = layout("ssl", tags)
    assert list(found) == ["Health", "Loss", "Prediction"]
    assert found["Loss"] == {
        "Total and unweighted": ["Multiline", ["^loss/total$"]],
        "By level": ["Multiline", [r"^loss/h\d+$"]],
    }
    assert [title for title, (kind, _) in found["Prediction"].items() if kind == "Margin"] == [
        "Cosine with its range, level 1"
    ]


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


def test_the_page_of_paired_modalities_and_of_frames_is_their_own():
    tags = ["loss/total", "alignment/text_vs_image/diagonal_similarity"]
    page = catalog.how_to_read("supervised", tags, catalog.MULTIMODAL_DASHBOARDS)
    for words in ("Training Progress", "alignment/recall_at_5_chance", "no_diagonal"):
        assert words in page
    assert "PSNR" not in page
    tags = ["loss/total", "Train/PSNR", "Eval/Gap/psnr_gap"]
    page = catalog.how_to_read("supervised", tags, catalog.DUAL_HEAD_DASHBOARDS)
    for words in ("Overview", "Eval/Frame/val_psnr", "head_imbalance", "| `Eval/Gap/psnr_gap` |"):
        assert words in page
    for words in ("alignment/", "frozen_teacher", "collapse"):
        assert words not in page
