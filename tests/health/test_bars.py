"""The judge on the recorded runs: bars below which it must not fall, for tuning and for held-out runs."""

import pytest
from benchmarks.health.oracle import has_twin, twins
from benchmarks.health.replay import PackageJudge, replay
from benchmarks.health.traces import load_traces


@pytest.fixture(scope="module")
def traces():
    return {held_out: load_traces(held_out=held_out) for held_out in (False, True)}


def result(traces, held_out):
    every = [trace for part in traces.values() for trace in part]
    known = twins(every)
    return replay([t for t in traces[held_out] if has_twin(t, known)], every, PackageJudge)


def share(flags):
    flags = list(flags)
    return sum(flags) / len(flags)


@pytest.mark.parametrize(
    ("held_out", "runs", "noticed", "headline", "alarms"),
    [(False, 60, 0.9, 0.85, 0), (True, 30, 0.85, 0.8, 1)],
)
def test_planted_failures_are_found_and_healthy_runs_left_alone(
    traces, held_out, runs, noticed, headline, alarms
):
    judged = result(traces, held_out)
    assert len(judged.healthy) >= runs
    assert sum(bool(run.alarms) for run in judged.healthy) <= alarms, [
        r.trace.name for r in judged.healthy if r.alarms
    ]
    failing = [run for run in judged.failing if run.truth.in_effect]
    assert share(run.noticed is not None for run in failing) >= noticed
    assert share(run.headline for run in failing) >= headline
