"""Warning signs of models with several heads: what fires, what stays quiet, what cannot tell."""

import math

import pytest

from hjepa_dist_metrics import catalog
from hjepa_dist_metrics.monitor.health.alerts import AlertBook
from hjepa_dist_metrics.monitor.health.reconstruction_rules import reconstruction_rules
from hjepa_dist_metrics.settings.schema import AlertsConfig


def found(rule, numbers):
    findings = reconstruction_rules()[rule](numbers)
    return None if findings is None else [finding.tag for finding in findings]


def test_every_rule_has_a_name_in_the_catalog():
    assert set(reconstruction_rules()) <= set(catalog.ALERT_RULES)


@pytest.mark.parametrize("rule", reconstruction_rules())
def test_a_run_of_another_kind_cannot_tell(rule):
    assert found(rule, {"loss/total": 1.0, "collapse/effective_rank": 3.0}) is None


@pytest.mark.parametrize(
    ("rule", "tag", "good", "bad"),
    [
        ("generalization_gap", "Eval/Gap/psnr_gap", [-1.0, 0.0, 2.9, 5.0], [5.01, math.nan]),
        ("generalization_gap", "Eval/Gap/clip_sim_gap", [0.0, 0.19], [0.21]),
        ("gradient_range", "Train/Gradients/total_norm", [0.001, 1.0, 100.0], [9e-4, 101.0, math.nan]),
        ("head_imbalance", "Train/Gradients/rgb_to_clip_ratio", [0.1, 10.0], [0.09, 10.1, math.nan]),
        ("head_imbalance", "Train/Gradients/depth_to_flow_ratio", [1.0], [math.inf]),
        ("poor_semantics", "Eval/Frame/val_clip_sim", [0.7, 0.95], []),
    ],
)
def test_bounds_are_those_of_the_document(rule, tag, good, bad):
    assert [found(rule, {tag: value}) for value in good] == [[]] * len(good)
    assert [found(rule, {tag: value}) for value in bad] == [[tag]] * len(bad)


def test_a_semantic_head_is_judged_after_its_warmup_and_where_it_no_longer_rises():
    rule = reconstruction_rules()["poor_semantics"]
    tag = "Eval/Frame/val_clip_sim"
    rule({"Train/clip_loss_active": 0.0})
    assert rule({tag: 0.0}) is None
    assert rule({tag: 0.0}) is None
    rule({"Train/clip_loss_active": 1.0})
    assert rule({tag: 0.2}) == []  # the first look
    assert rule({tag: 0.4}) == []  # rising
    (finding,) = rule({tag: 0.405})
    assert (finding.tag, finding.reason) == (tag, "below 0.7")
    assert len(rule({tag: 0.3})) == 1
    assert rule({tag: 0.8}) == []


def swings(values):
    rule = reconstruction_rules()["loss_oscillation"]
    return [rule({"Train/Loss/total_loss": value}) for value in values][-1]


def test_a_loss_that_swings_is_found_and_one_that_falls_or_jumps_once_is_not():
    (finding,) = swings([1.0, 2.0] * 4)
    assert finding.reason == "turned 6 times in 8 epochs, by 67 % of its size"
    assert swings([2.0**-i for i in range(8)]) == []
    assert swings([0.3, 0.2, 0.1, 0.9, 0.8, 0.7, 0.6, 0.5]) == []
    assert swings([1.0, 1.01] * 4) == []
    assert swings([1.0, 2.0] * 3) is None  # too few epochs


def test_a_rule_fires_after_patience():
    book = AlertBook(AlertsConfig(patience=3), reconstruction_rules())
    for step in range(5):
        book.evaluate(step, {"Eval/Gap/psnr_gap": 6.0})
    (alert,) = book.alerts
    assert str(alert) == "step 2: generalization_gap: Eval/Gap/psnr_gap = 6 (above 5)"
