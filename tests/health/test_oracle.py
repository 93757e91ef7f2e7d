"""The oracle, against series whose damage is known."""

import math

import pytest
from benchmarks.health.oracle import has_twin, truth, twins
from benchmarks.health.traces import Trace, load_traces


def run_of(values: list[float], measure: str | None, planted: int | None = 20) -> Trace:
    run = {
        "recipe": "vicreg",
        "seed": 0,
        "failure": None if planted is None else "some",
        "planted_at": planted,
        "measure": measure,
    }
    facts = [(5 * i, {"rank": value, "step": value}) for i, value in enumerate(values)]
    return Trace("healthy-vicreg-lr1-bs1-s0", run, [], facts)


HEALTHY = run_of([8.0] * 12, None, None)


def test_a_failure_without_a_measure_is_visible_at_its_first_log():
    assert truth(run_of([8.0] * 12, None, planted=22), None).visible == 25


def test_an_abrupt_failure_is_visible_where_it_happens():
    found = truth(run_of([8.0] * 6 + [1.0] * 6, "rank"), HEALTHY)
    assert (found.visible, found.half) == (30, 30)
    assert found.damage == pytest.approx(math.log(8.0))
    assert found.in_effect


def test_a_slow_failure_is_visible_from_a_factor_of_two_and_done_by_half_in_logarithms():
    values = [8.0] * 4 + [8.0 / 2**i for i in range(8)]
    found = truth(run_of(values, "rank"), HEALTHY)
    assert found.visible == 25  # 4.0, the first half of the healthy run's rank
    assert found.half == 40  # 8 / 2**4, past half of seven halvings


def test_what_recovers_was_no_damage_yet():
    found = truth(run_of([8.0] * 5 + [2.0] + [8.0] * 3 + [2.0] * 3, "rank"), HEALTHY)
    assert found.visible == 45


def test_a_failure_that_does_nothing_is_not_in_effect():
    assert not truth(run_of([8.0] * 12, "rank"), HEALTHY).in_effect


def test_nan_is_damage():
    assert truth(run_of([8.0] * 6 + [math.nan] * 6, "rank"), HEALTHY).visible == 30


def test_times_are_compared_with_the_run_itself():
    found = truth(run_of([1.0] * 6 + [4.0] * 6, "step"), None)
    assert found.visible == 30


def test_every_stored_failure_is_in_effect():
    traces = [*load_traces(), *load_traces(held_out=True)]
    healthy = twins(traces)
    checked, without = 0, []
    for trace in traces:
        if trace.run["failure"] is not None:
            assert has_twin(trace, healthy), trace.name
            checked += 1
            if not truth(trace, healthy.get((trace.run["recipe"], trace.run["seed"]))).in_effect:
                without.append(trace.name)
    assert checked
    assert not without
