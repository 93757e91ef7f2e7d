"""The judge: patience, recovery, what follows from what, checkpoints, cost and memory."""

import json
import time

import numpy as np
import pytest

from hjepa_dist_metrics import ConfigError, Evidence
from hjepa_dist_metrics.catalog.findings import FINDINGS, GROUPS, expand
from hjepa_dist_metrics.monitor.health.detectors import DETECTORS
from hjepa_dist_metrics.monitor.health.judge import Judge
from hjepa_dist_metrics.monitor.health.series import OUTLINE, RECENT, Series, rank_correlation, scatter
from hjepa_dist_metrics.settings.schema import AlertsConfig

LEAK, RATIO = "masking/context_target_overlap", "masking/mask_ratio"


def walk(judge, values, tag=LEAK, every=10):
    """Return (findings that began, whether it lasts) for each log."""
    seen = []
    for i, value in enumerate(values):
        judge.update(i * every, {tag: value})
        seen.append((len(judge.change.begun), bool(judge.firing())))
    return seen


def test_a_finding_needs_patience_to_begin_and_recovery_to_end():
    judge = Judge(AlertsConfig(patience=2, recovery=2, patience_steps=0))
    seen = walk(judge, [0, 1, 0, 1, 1, 1, 0, 1, 0, 0, 1, 1])
    assert [begins for begins, _ in seen] == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1]
    assert [lasts for _, lasts in seen] == [False] * 4 + [True] * 5 + [False, False, True]


@pytest.mark.parametrize(("every", "first"), [(1, 7), (5, 2), (100, 1)])
def test_patience_counts_logs_and_steps(every, first):
    judge = Judge(AlertsConfig(patience=2, patience_steps=7))
    begun = [begins for begins, _ in walk(judge, [1.0] * 10, every=every)]
    assert begun.index(1) == first
    assert judge.health.findings[0].since == 0


def test_two_logs_of_one_step_are_one():
    judge = Judge(AlertsConfig(patience=2, patience_steps=0))
    for _ in range(3):
        judge.update(5, {LEAK: 1.0})
        assert judge.health.verdict == "healthy"
    assert judge.update(6, {LEAK: 1.0}).verdict == "failing"


def test_a_log_without_the_tag_changes_nothing():
    judge = Judge(AlertsConfig(patience=2, patience_steps=0, recovery=1))
    walk(judge, [1.0, 1.0])
    assert judge.update(30, {"loss/total": 1.0}).verdict == "failing"
    assert judge.update(40, {LEAK: 0.0}).verdict == "healthy"
    assert judge.change.ended == ("mask_leak",)


def test_nan_is_found_at_once_with_the_first_bad_level():
    judge = Judge()
    health = judge.update(
        3, {"loss/total": float("nan"), "loss/first_nonfinite_level": 1.0, "loss/nonfinite": 2.0}
    )
    assert (health.verdict, health.findings[0].name, health.findings[0].since) == ("failing", "nonfinite", 3)
    assert [evidence.tag for evidence in health.findings[0].evidence] == [
        "loss/h1",
        "loss/total",
        "loss/nonfinite",
    ]


def test_one_cause_is_one_finding():
    """A collapse brings a loss that drops: it is shown with the collapse and not beside it."""
    judge = Judge(AlertsConfig(patience=1, patience_steps=0))
    judge.update(0, {LEAK: 1.0, RATIO: 0.0})
    assert [finding.name for finding in judge.health.findings] == ["mask_leak", "degenerate_masks"]
    stream = {"collapse/num_features": 8.0, "collapse/num_samples": 64.0, "collapse/is_constant": 1.0}
    judge.update(10, stream | {"data/constant_batches": 1.0})
    names = {finding.name: finding.also for finding in judge.health.findings}
    assert "point_collapse" not in names or not names["point_collapse"]
    assert judge.firing() >= {"point_collapse", "constant_inputs"}


def test_no_finding_explains_itself():
    def follow(name, seen):
        for other in FINDINGS[name].explains:
            assert other in FINDINGS
            assert other not in seen, (other, seen)
            follow(other, (*seen, other))

    for name in FINDINGS:
        follow(name, (name,))


def test_every_finding_has_a_detector_and_the_reverse():
    assert sorted(detector.name for detector in DETECTORS) == sorted(FINDINGS)


def test_stop_on_takes_findings_and_groups():
    assert expand(["collapse", "nonfinite"]) == {*GROUPS["collapse"], "nonfinite"}
    assert AlertsConfig(stop_on=["collapse", "loss_spike"])
    with pytest.raises(ConfigError, match=r"alerts.stop_on.*did you mean 'loss_spike'"):
        AlertsConfig(stop_on=["loss_spikes"])


def test_a_users_rule_is_judged_and_one_that_fails_is_reported_once(caplog):
    judge = Judge(AlertsConfig(patience=2))
    judge.add("high", lambda n: [Evidence("x", n["x"], "above 1", limit=1.0)] if n["x"] > 1 else [])
    judge.add("broken", lambda n: 1 / 0)
    for step in range(3):
        judge.update(step, {"x": 2.0})
    assert judge.firing() == {"high"}
    assert [r.message for r in caplog.records] == [
        "the rule 'broken' failed; what it cannot judge is passed over"
    ]
    for name in ("high", "nonfinite"):
        with pytest.raises(ConfigError, match=f"a finding named '{name}' already"):
            judge.add(name, lambda n: [])


def numbers(step):
    """A log of some 120 tags, of a run that collapses from step 300 on."""
    fallen = min(max(step - 300, 0) / 100, 1.0)
    stream = {
        "collapse/num_features": 128.0,
        "collapse/num_samples": 512.0,
        "collapse/effective_rank": 90 - 80 * fallen,
        "collapse/mean_similarity": 0.2 + 0.79 * fallen + 0.001 * (step % 7),
    }
    named = {tag.replace("/", "/context_", 1): value for tag, value in stream.items()}
    groups = {f"update/g{i}_ratio": 1e-3 for i in range(8)} | {f"weights/g{i}_norm": 1.0 for i in range(8)}
    more = {
        "loss/total": 1.0 + 1 / (1 + step),
        "gradients/global_norm": 1.0 + 0.01 * (step % 7),
        "performance/samples_per_second": 9.0,
    }
    return stream | named | groups | more | {f"gradients/m{i}_mean": 0.1 for i in range(90)}


@pytest.mark.parametrize("break_at", [5, 32, 34, 60])
def test_a_resumed_run_comes_to_the_findings_of_a_whole_one(break_at):
    whole, resumed = Judge(), Judge()
    for i in range(80):
        if i == break_at:
            saved = json.loads(json.dumps(resumed.state_dict()))
            resumed = Judge()
            resumed.load_state_dict(saved)
            assert resumed.health.findings == whole.health.findings
        for judge in (whole, resumed):
            judge.update(10 * i, numbers(10 * i))
        assert resumed.health == whole.health
        assert resumed.change == whole.change
    assert whole.health.findings[0].name == "point_collapse"


def test_memory_does_not_grow_with_the_run():
    series = Series()
    for step in range(10_000):
        series.add(step, float(step))
    assert len(series.recent) == RECENT
    assert OUTLINE <= len(series.outline) <= 2 * OUTLINE
    steps = [step for step, _ in series.outline]
    assert (steps[0], steps == sorted(steps)) == (0, True)
    assert steps[-1] > 9_500


def test_the_level_that_was_held():
    series = Series()
    for step, value in enumerate([30, 20, 12, 10, 11, 10, 12, 11, 10, 11, 10, 12, 3, 3]):
        series.add(step, float(value))
    assert series.sustained(0.5) == 10.0  # the start was left at once
    assert series.sustained(0.5, -1.0) == 12.0
    assert series.sustained(0.0) == 30.0


def test_trend_and_scatter():
    assert rank_correlation([1, 2, 3, 4]) == 1.0
    assert rank_correlation([4, 3, 2]) == -1.0
    assert rank_correlation([1, 1, 1]) == rank_correlation([]) == 0.0
    assert scatter([1.0, 3.0, 5.0, 7.0]) == 0.0
    noise = np.random.default_rng(0).normal(scale=2.0, size=4000) + np.arange(4000.0)
    assert scatter(noise.tolist()) == pytest.approx(2.0, rel=0.05)
    assert scatter([1.0]) == 0.0


def test_an_objective_that_changes_is_no_jump_of_the_loss():
    for objective, found in ((0, {"loss_level_shift"}), (1, set())):
        judge = Judge()
        for i in range(30):
            after = {"loss/objective": float(objective)} if objective and i >= 15 else {}
            judge.update(10 * i, {"loss/total": (1.0 if i < 15 else 5.0) + 0.01 * (i % 3), **after})
        assert judge.firing() == found


def test_a_log_is_judged_in_a_fraction_of_a_millisecond():
    """A bound far above the 0.2 ms that it takes, for machines that are busy: it catches work that grows."""
    judge, logs = Judge(), [(10 * i, numbers(10 * i)) for i in range(400)]
    start = time.process_time()
    for step, log in logs:
        judge.update(step, log)
    assert (time.process_time() - start) / len(logs) < 5e-3
