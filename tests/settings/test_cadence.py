"""Every: the grid, the clock, the first step, resume."""

import itertools

import pytest
from hypothesis import given, strategies as st

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.settings.cadence import Every

rising_steps = st.lists(st.integers(0, 3000), min_size=1, unique=True).map(sorted)


def due_steps(every, steps, clock=None):
    return [step for index, step in enumerate(steps) if every.due(step, clock[index] if clock else 0.0)]


def test_the_first_step_then_each_multiple():
    assert due_steps(Every(steps=10), range(1, 35)) == [1, 10, 20, 30]
    assert due_steps(Every(steps=1), range(5)) == [0, 1, 2, 3, 4]


def test_a_multiple_that_was_jumped_over_is_caught_once():
    assert due_steps(Every(steps=10), [0, 7, 14, 21, 28, 35]) == [0, 14, 21, 35]


def test_seconds_count_from_the_last_time():
    assert due_steps(Every(seconds=2.0), range(7), clock=[0, 1, 2, 3, 3.9, 4, 10]) == [0, 2, 5, 6]


def test_whichever_comes_first():
    assert due_steps(Every(steps=4, seconds=10.0), range(1, 9), clock=[0, 1, 2, 3, 4, 14, 15, 16]) == [
        1,
        4,
        6,
        8,
    ]


def test_without_a_bound_nothing_is_due():
    assert due_steps(Every(), range(100)) == []


@given(st.integers(1, 500), rising_steps)
def test_due_exactly_where_a_multiple_was_reached_or_passed(period, steps):
    every = Every(steps=period)
    due = due_steps(every, steps)
    assert due[0] == steps[0]
    for before, now in itertools.pairwise(steps):
        crossed = any(multiple % period == 0 for multiple in range(before + 1, now + 1))
        assert (now in due) == crossed


@given(st.integers(1, 500), rising_steps)
def test_passed_adds_up_to_the_way_covered(period, steps):
    every, total = Every(steps=period), 0
    for step in steps:
        if every.due(step):
            total += every.passed
    assert total == every.last_step - steps[0]


@given(st.floats(0.1, 50), st.lists(st.floats(0, 1000), min_size=1).map(sorted))
def test_times_are_at_least_the_bound_apart_and_never_late(seconds, clock):
    every, last = Every(seconds=seconds), None
    for step, now in enumerate(clock):
        assert every.due(step, now) == (last is None or now - last >= seconds)
        last = every.last_time


@given(st.integers(1, 50), st.integers(1, 200), st.integers(1, 200))
def test_a_resumed_run_is_due_where_an_unbroken_one_is(period, cut, end):
    whole = due_steps(Every(steps=period), range(cut + end))
    first, second = Every(steps=period), Every(steps=period)
    head = due_steps(first, range(cut))
    second.load_state_dict(first.state_dict())
    assert head + due_steps(second, range(cut, cut + end)) == whole


def test_a_resumed_clock_that_is_behind_does_not_wait():
    every = Every(seconds=10.0)
    every.due(0, now=1e6)
    assert every.due(1, now=5.0)


def test_a_step_asked_about_twice_is_due_once():
    every = Every(steps=5)
    assert [every.due(step) for step in (5, 5, 4, 10, 10)] == [True, False, False, True, False]


@pytest.mark.parametrize("bounds", [{"steps": 0}, {"steps": -3}, {"seconds": 0.0}, {"seconds": float("nan")}])
def test_a_bound_must_be_positive(bounds):
    with pytest.raises(ConfigError, match=r"cadence in (steps|seconds)"):
        Every(**bounds)
