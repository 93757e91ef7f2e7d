"""The tags of the dual-head guide: in the catalog, on the six tabs, with the guide's bounds."""

import re

import pytest

from hjepa_dist_metrics import catalog
from hjepa_dist_metrics.catalog.dashboards import load_dashboards
from tests.reference.dual_head_tags import HISTOGRAMS, SCALARS

PREFIX = "dual_head_"


@pytest.mark.parametrize("tag", SCALARS)
def test_every_scalar_is_known(tag):
    entry = catalog.find(tag)
    assert entry is not None
    assert entry.kind == "scalar"


@pytest.mark.parametrize("tag", HISTOGRAMS)
def test_every_histogram_is_known(tag):
    assert catalog.find(tag).kind == "histogram"


def lines(tab):
    (charts,) = load_dashboards([PREFIX + tab]).values()
    return [line for kind, tags in charts.values() if kind == "Multiline" for line in tags]


@pytest.mark.parametrize(
    ("tab", "groups"),
    [
        ("overview", ["Train/PSNR", "Eval/Frame/val_psnr", "Train/Loss/total_loss", "Train/learning_rate"]),
        (
            "loss_breakdown",
            [
                *("Train/Loss/pixel_loss", "Train/Loss/clip_loss", "Train/Loss/clip_loss_weighted"),
                "Train/clip_loss_active",
            ],
        ),
        ("gradients", ["Train/Gradients/"]),
        ("evaluation", ["Eval/Frame/", "Eval/Gap/"]),
        ("statistics", ["Eval/PSNR_Stats/", "Eval/Patch/"]),
    ],
)
def test_each_tab_shows_what_the_guide_puts_there(tab, groups):
    wanted = [tag for tag in SCALARS if any(tag == g or (tag.startswith(g) and g[-1] == "/") for g in groups)]
    assert len(wanted) >= len(groups)
    unseen = [tag for tag in wanted if not any(re.match(line, tag) for line in lines(tab))]
    assert unseen == []


def test_the_distributions_are_bands_and_deciles_of_both_splits():
    (charts,) = load_dashboards([PREFIX + "distributions"]).values()
    bands = [tags for kind, tags in charts.values() if kind == "Margin"]
    assert bands == [
        [f"Eval/Frame/{split}_psnr", f"Eval/PSNR_Stats/{split}_min", f"Eval/PSNR_Stats/{split}_max"]
        for split in ("train", "val")
    ]
    assert len(lines("distributions")) == 12


def test_the_six_tabs_have_the_guides_names():
    assert list(load_dashboards(catalog.DUAL_HEAD_DASHBOARDS)) == [
        *("Overview", "Loss breakdown", "Gradients", "Evaluation", "Statistics", "Distributions"),
    ]


@pytest.mark.parametrize(
    ("tag", "verdicts"),
    [
        ("Eval/Gap/psnr_gap", {2.9: "ok", 3.1: "warn", 5.1: "bad"}),
        ("Eval/Frame/val_clip_sim", {0.86: "ok", 0.84: "warn", 0.69: "bad"}),
    ],
)
def test_bounds(tag, verdicts):
    limits = catalog.find(tag).limits(0, 0)
    assert {value: limits.judge(value) for value in verdicts} == verdicts
