"""Each alert rule on numbers made by hand: what it finds, what it leaves alone, when it cannot tell."""

import math
import re

import pytest

from hjepa_dist_metrics import catalog
from hjepa_dist_metrics.catalog import ALERT_RULES
from hjepa_dist_metrics.monitor.health.alerts import AlertBook
from hjepa_dist_metrics.monitor.health.reconstruction_rules import reconstruction_rules
from hjepa_dist_metrics.monitor.health.rules import (
    CollapseRule,
    Convergence,
    Nonfinite,
    NormRule,
    Overfitting,
    frozen_teacher,
    level_imbalance,
    loss_spike,
    repeated_masks,
)
from hjepa_dist_metrics.settings.schema import AlertsConfig
from hjepa_dist_metrics.values import Scalar
from tests.helpers.rules import built_in_rules

NORM = "gradient/global_norm_before_clip"


def collapse_numbers(rank=30.0, similarity=0.1, std=0.1, prefix="collapse/", count=4096):
    return {
        f"{prefix}num_samples": count,
        f"{prefix}effective_rank": rank,
        f"{prefix}mean_similarity": similarity,
        f"{prefix}mean_std_per_dim": std,
    }


def tags(findings):
    return None if findings is None else [finding.tag for finding in findings]


def test_every_rule_of_the_catalog_is_there_and_the_reverse():
    assert {*built_in_rules(), *reconstruction_rules()} == set(ALERT_RULES)


@pytest.mark.parametrize(
    ("bad", "tag"),
    [
        ({"rank": 1.5}, "collapse/effective_rank"),
        ({"similarity": 0.95}, "collapse/mean_similarity"),
        ({"std": 1e-3}, "collapse/mean_std_per_dim"),
        ({"rank": math.nan}, "collapse/effective_rank"),
    ],
)
def test_collapse_is_a_number_beyond_its_limit(bad, tag):
    rule = CollapseRule(lambda: {"collapse/": 64})
    assert tags(rule(collapse_numbers())) == []
    assert tags(rule(collapse_numbers(**bad))) == [tag]


def test_a_bad_start_is_no_collapse_while_it_gets_better():
    rule = CollapseRule(lambda: {"collapse/": 64})
    assert tags(rule(collapse_numbers(similarity=0.99))) == ["collapse/mean_similarity"]
    assert tags(rule(collapse_numbers(similarity=0.95))) == []
    assert tags(rule(collapse_numbers(similarity=0.985))) == ["collapse/mean_similarity"]


@pytest.mark.parametrize(
    ("name", "start", "best", "back"),
    [
        ("rank", 2.0, 30.0, 2.2),
        ("similarity", 0.99, 0.2, 0.95),
        ("std", 0.0005, 0.1, 0.0006),
        ("similarity", 0.99, 0.7, 0.93),  # better than the warning was never needed
    ],
)
def test_a_fall_back_to_a_bad_start_is_a_collapse(name, start, best, back):
    rule = CollapseRule(lambda: {"collapse/": 64})
    assert len(rule(collapse_numbers(**{name: start}))) == 1
    assert rule(collapse_numbers(**{name: best})) == []
    assert len(rule(collapse_numbers(**{name: back}))) == 1


def test_collapse_looks_at_each_stream_and_at_nothing_else():
    rule = CollapseRule(lambda: {"collapse/": 64, "collapse/context_": 64})
    numbers = collapse_numbers() | collapse_numbers(rank=1.0, prefix="collapse/context_")
    assert tags(rule(numbers)) == ["collapse/context_effective_rank"]
    assert rule({"loss/total": 1.0}) is None
    assert rule(collapse_numbers(prefix="collapse/other_")) is None
    assert tags(rule(collapse_numbers(rank=1.0, similarity=1.0, count=1))) == []


def teacher(momentum=0.98, divergence=0.1, move=0.002):
    return {
        "ema/momentum_current": momentum,
        "ema/relative_divergence": divergence,
        "ema/update_magnitude": move,
    }


@pytest.mark.parametrize(
    ("numbers", "frozen"),
    [
        (teacher(), False),
        (teacher(move=0.0), True),
        (teacher(move=1e-5), True),  # bf16 weights that the update does not reach
        (teacher(momentum=1.0, move=0.0), False),
        (teacher(momentum=0.99999, move=0.0), False),
        (teacher(divergence=0.0, move=0.0), False),
        (teacher(momentum=0.0, divergence=0.0, move=0.3), False),
    ],
)
def test_a_teacher_is_frozen_where_it_moves_less_than_its_momentum_says(numbers, frozen):
    assert tags(frozen_teacher(numbers)) == (["ema/update_magnitude"] if frozen else [])


def test_a_teacher_without_a_move_yet_cannot_be_judged():
    assert frozen_teacher({"ema/momentum_current": 0.9}) is None
    assert frozen_teacher({"ema/update_magnitude": 0.1}) is None


@pytest.mark.parametrize("tag", sorted({entry.pattern for entry in catalog.entries()}))
def test_no_rule_stumbles_over_a_number_alone(tag):
    alone = re.sub(r"\{\w+\}", "0", tag)
    for rule in (*built_in_rules().values(), *reconstruction_rules().values()):
        rule({alone: 1.0})


def test_repeated_masks():
    healthy = {"masking/repeated_batches": 0.0, "masking/collision_probability": 0.01}
    assert repeated_masks(healthy) == []
    assert tags(repeated_masks(healthy | {"masking/repeated_batches": 0.5})) == ["masking/repeated_batches"]
    one = healthy | {"masking/collision_probability": 0.9}
    assert tags(repeated_masks(one)) == ["masking/collision_probability"]
    assert repeated_masks({}) is None
    assert repeated_masks({"masking/repeated_batches": 0.0}) == []
    assert tags(repeated_masks({"masking/collision_probability": 0.9})) == ["masking/collision_probability"]


def test_a_loss_spike_must_be_far_and_high():
    def judged(score, ratio):
        return tags(loss_spike({"stability/worst_spike_score": score, "stability/loss_max_spike": ratio}))

    assert judged(50.0, 4.0) == ["stability/worst_spike_score"]
    assert judged(50.0, 1.01) == []
    assert judged(3.0, 9.0) == []
    assert judged(math.nan, 9.0) == []
    assert loss_spike({}) is None


def test_nonfinite_names_the_first_level():
    nonfinite = Nonfinite()
    clean = {"loss/nonfinite": 0.0, "collapse/context_nonfinite": 0.0, "gradient/nonfinite_steps": 0.0}
    assert nonfinite(clean) == []
    dirty = clean | {
        "loss/nonfinite": 2.0,
        "loss/first_nonfinite_level": 1.0,
        "hierarchy/level0_nonfinite": 1.0,
    }
    found = nonfinite(dirty)
    assert tags(found) == ["loss/h1", "loss/nonfinite", "hierarchy/level0_nonfinite"]
    assert all(finding.at_once for finding in found)
    assert Nonfinite()({"loss/total": math.nan}) is None


def test_a_bad_count_stays_bad_until_it_is_seen_again():
    nonfinite, fast, slow = Nonfinite(), {"loss/nonfinite": 0.0}, "collapse/nonfinite"
    assert tags(nonfinite(fast | {slow: 5.0})) == [slow]
    assert [nonfinite(fast) for _ in range(9)] == [None] * 9
    assert tags(nonfinite(fast | {slow: 4.0})) == [slow]
    assert nonfinite(fast | {slow: 0.0}) == []
    assert nonfinite(fast) == []


def test_a_condition_that_lasts_is_one_alert():
    alerts = AlertBook(AlertsConfig(), {"nonfinite": Nonfinite()})
    for step in range(100):
        slow = {"collapse/nonfinite": 5.0} if step % 10 == 0 else {}
        alerts.evaluate(step, {"loss/nonfinite": 0.0, **slow})
    assert (len(alerts.alerts), alerts.firing()) == (1, {"nonfinite"})


def test_a_bad_gradient_between_logs_is_found_when_it_is_counted():
    nonfinite, steps = Nonfinite(), "gradient/nonfinite_steps"
    assert nonfinite({steps: 0.0}) == []
    found = nonfinite({steps: 1.0})
    # A loss scaler that seeks its scale makes such steps: the alert takes patience.
    assert (tags(found), found[0].at_once) == ([steps], False)
    assert nonfinite({steps: 1.0}) == []  # the count is that of the whole run
    assert nonfinite({"loss/total": 1.0}) is None
    assert tags(nonfinite({steps: 3.0})) == [steps]


def test_level_imbalance():
    assert level_imbalance({"loss/contribution_h0": 60.0, "loss/contribution_h1": 40.0}) == []
    one_sided = {"loss/contribution_h0": 0.5, "loss/contribution_h1": 99.5}
    assert tags(level_imbalance(one_sided)) == ["loss/contribution_h1"]
    assert level_imbalance({"loss/contribution_h0": 100.0}) is None


def test_gradients_vanish_and_explode_against_their_recent_range():
    vanishing, exploding = NormRule(NORM, low=True), NormRule(NORM, low=False)
    assert vanishing({}) is None
    assert tags(vanishing({NORM: 0.0})) == [NORM]
    for value in (1.0, 0.5, 2.0, 1.5, 1.0, 0.8):
        assert (vanishing({NORM: value}), exploding({NORM: value})) == ([], [])
    assert tags(vanishing({NORM: 1e-6})) == [NORM]
    assert tags(exploding({NORM: 500.0})) == [NORM]
    assert tags(exploding({NORM: 500.0})) == [NORM]  # what left the range does not become the range
    assert (vanishing({NORM: math.nan}), exploding({NORM: math.inf})) == ([], [])


def test_a_norm_that_falls_slowly_does_not_vanish():
    rule = NormRule(NORM, low=True)
    assert all(rule({NORM: 10.0 ** (-step / 20)}) == [] for step in range(100))


def test_overfitting_is_a_validation_loss_that_rises_while_training_falls():
    rule = Overfitting()
    assert rule({"loss/total": 2.0}) is None
    assert rule({"val/loss": 2.0}) == []
    assert rule({"loss/total": 1.0}) is None
    assert rule({"val/loss": 1.5}) == []
    assert rule({"loss/total": 0.5}) is None
    assert rule({"val/loss": 1.6}) == []  # within a tenth of the best
    assert tags(rule({"val/loss": 1.8})) == ["val/loss"]
    assert rule({"loss/total": 3.0, "val/loss": 1.8}) == []  # both rise: no overfitting


def test_convergence_is_the_relative_change_per_step():
    convergence = Convergence()

    def rates(step, **losses):
        values = {f"loss/{name}": Scalar(value) for name, value in losses.items()}
        return {tag: float(value) for tag, value in convergence.rates(step, values).items()}

    assert rates(0, total=2.0, h0=1.0, variance=3.0) == {}
    assert rates(10, total=1.0, h0=1.5) == {
        "loss/convergence_rate": pytest.approx(-0.05),
        "loss/convergence_rate_h0": pytest.approx(0.05),
    }
    assert rates(10, total=0.5) == {}
    assert rates(20, total=0.5) == {"loss/convergence_rate": 0.0}
