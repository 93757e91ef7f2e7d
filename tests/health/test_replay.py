"""Scores of a replay, with judges that say what they are told to say."""

from collections.abc import Mapping, Sequence

from benchmarks.health.baselines import FixedThresholds, canonical, single_metrics
from benchmarks.health.replay import failing_run, healthy_run
from benchmarks.health.traces import Trace


class Scripted:
    def __init__(self, script: Mapping[int, Sequence[str]]) -> None:
        self.script = script

    def update(self, step: int, values: Mapping[str, float]) -> Sequence[str]:
        return self.script.get(step, ())


def trace(failure: str | None = "some", values: Sequence[float] = ()) -> Trace:
    run = {
        "recipe": "vicreg",
        "seed": 0,
        "failure": failure,
        "planted_at": None if failure is None else 50,
        "expect": "point_collapse",
        "accept": ["norm_vanishing"],
        "measure": None,
    }
    steps = range(0, 100, 10)
    logs = [
        (step, {"collapse/encoder_rankme": v}) for step, v in zip(steps, values or [1.0] * 10, strict=True)
    ]
    return Trace("t", run, logs, [(step, {}) for step in steps])


def test_delay_counts_logs_from_when_the_failure_was_visible():
    found = failing_run(
        trace(), None, Scripted({70: ["plateau"], 80: ["point_collapse"], 90: ["point_collapse"]})
    )
    assert (found.noticed, found.named) == (2, 3)
    assert found.in_time
    assert found.headline
    assert found.instead == ("plateau",)


def test_a_late_or_missing_finding_is_not_in_time():
    late = failing_run(trace(), None, Scripted({90: ["point_collapse"]}))
    assert (late.named, late.in_time) == (4, False)
    never = failing_run(trace(), None, Scripted({60: ["plateau"]}))
    assert (never.noticed, never.named, never.in_time, never.headline) == (1, None, False, False)


def test_accepted_findings_and_the_group_are_right_and_early_ones_are_named():
    script = {20: ["loss_spike"], 50: ["loss_spike"], 60: ["norm_vanishing"]}
    found = failing_run(trace(), None, Scripted(script))
    assert (found.noticed, found.named, found.early) == (1, 1, ("loss_spike",))
    assert failing_run(trace(), None, Scripted({50: ["collapse"]})).named == 0


def test_the_right_finding_behind_another_is_no_headline():
    script = {step: ["plateau", "point_collapse"] for step in range(50, 100, 10)}
    found = failing_run(trace(), None, Scripted(script))
    assert (found.named, found.headline) == (0, False)


def test_healthy_runs_count_logs_with_any_finding():
    found = healthy_run(trace(None), Scripted({20: ["plateau"], 30: ["plateau", "loss_drop"]}))
    assert (found.alarms, found.alarmed_logs) == (("plateau", "loss_drop"), 2)


def test_the_first_documents_thresholds():
    judge = FixedThresholds()
    healthy = {"collapse/mean_std_per_dim": 0.1, "collapse/pooled_mean_similarity": 0.2}
    assert judge.update(0, healthy) == []
    assert judge.update(0, {"collapse/encoder_mean_similarity": 0.6}) == ["collapse"]
    assert judge.update(0, {"collapse/min_std_per_dim": 0.0005}) == ["collapse"]


def test_the_best_threshold_of_a_single_number():
    low = [trace("some", [5.0] * 5 + [value] * 5) for value in (1.0, 2.0)]
    high = [trace(None, [5.0, value] * 5) for value in (3.0, 4.0)]
    best = single_metrics([*low, *high])[0]
    assert (best.tag, best.side, best.detected, best.alarmed) == ("collapse/rankme", "below", 1.0, 0.0)
    assert best.threshold == 2.0


def test_names_of_streams_modules_and_levels_are_left_out():
    assert canonical("collapse/level1_pooled_effective_rank") == "collapse/pooled_effective_rank"
    assert canonical("gradients/context_encoder_total_norm") == "gradients/*_total_norm"
    assert canonical("loss/h2") == "loss/h*"
