"""The short way of a sync brings what the long one does, to the bit; ranks on either get along."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from hjepa_dist_metrics import DesyncError
from hjepa_dist_metrics.states import Covariance, Max, Mean, State, Sum
from hjepa_dist_metrics.sync import AdditiveSync, MergedStates, Plan, Ticket, exchange, snapshot
from hjepa_dist_metrics.sync.frame import Frame
from tests.ranks import run_ranks, try_ranks

NUMBERS = st.one_of(
    st.floats(-1e3, 1e3), st.sampled_from([float("inf"), -float("inf"), float("nan"), 0.0, -0.0])
)


def states_of(values: list[float], wide: int) -> dict[str, State]:
    """Return means, a sum and a sum with a shape, which have seen `values`."""
    states: dict[str, State] = {f"m{i}": Mean() for i in range(len(values))}
    for state, value in zip(list(states.values()), values, strict=True):
        state.update(value, 3.0)
    states["sum"], states["wide"] = Sum(), Sum(shape=(wide,))
    states["sum"].update(torch.tensor(values))
    states["wide"].update(torch.arange(wide) * values[0])
    return states


def bits(merged: MergedStates) -> dict[str, bytes]:
    return {name: state.data.numpy().tobytes() for name, state in merged.items()}


def sync(context, states: dict[str, State], short: bool, number: int = 1, failures=()) -> MergedStates:
    plan, ticket = Plan.of(states), Ticket(number, dict(failures))
    way = AdditiveSync.of(plan, context.world_size, None) if short else None
    assert (way is not None) == short
    return (exchange if way is None else way.exchange)(snapshot(states, plan), context.channel, ticket)[0]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_both_ways_bring_the_same_bits_on_every_rank(data):
    world_size = data.draw(st.integers(1, 4))
    count, wide = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 40))
    seen = [data.draw(st.lists(NUMBERS, min_size=count, max_size=count)) for _ in range(world_size)]
    short = [data.draw(st.booleans()) for _ in range(world_size)]

    def body(context) -> tuple[dict[str, bytes], dict[str, bytes]]:
        states = states_of(seen[context.rank], wide)
        mixed = bits(sync(context, states, short[context.rank]))
        return mixed, bits(sync(context, states, False))

    results = run_ranks(world_size, body)
    assert all(mixed == results[0][1] and long == results[0][1] for mixed, long in results)


def test_what_a_sync_brought_stays_when_the_next_one_uses_its_memory_again():
    def body(context) -> tuple[dict[str, bytes], dict[str, bytes]]:
        states = states_of([1.0, 2.0], 3)
        plan = Plan.of(states)
        way = AdditiveSync.of(plan, context.world_size, None)
        assert way is not None
        first = way.exchange(snapshot(states, plan), context.channel, Ticket(1, {}))[0]
        before = bits(first)
        states["sum"].update(5.0)
        second = way.exchange(snapshot(states, plan), context.channel, Ticket(2, {}))[0]
        assert bits(second) != before
        return before, bits(first)

    for world_size in (1, 3):
        assert all(before == after for before, after in run_ranks(world_size, body))


@pytest.mark.parametrize("world_size", [1, 2, 4096])
def test_it_takes_what_fits_the_frame(world_size):
    room = len(Frame(world_size).numbers)
    just, over = {"s": Sum(shape=(min(room, 256),))}, {f"s{i}": Sum() for i in range(room + 1)}
    fitting = {f"s{i}": Sum() for i in range(room)}
    assert AdditiveSync.of(Plan.of(just), world_size, None) is not None
    assert AdditiveSync.of(Plan.of(fitting), world_size, None) is not None
    assert AdditiveSync.of(Plan.of(over), world_size, None) is None


@pytest.mark.parametrize("other", [Max(), Covariance(3), Sum(shape=(257,))])
def test_it_takes_sums_alone(other):
    assert AdditiveSync.of(Plan.of({"sum": Sum(), "other": other}), 2, None) is None


def test_it_is_kept_for_the_same_plan_and_world():
    plan = Plan.of({"sum": Sum()})
    way = AdditiveSync.of(plan, 2, None)
    assert AdditiveSync.of(plan, 2, way) is way
    assert AdditiveSync.of(plan, 3, way) is not way
    assert AdditiveSync.of(Plan.of({"sum": Sum()}), 2, way) is not way


@pytest.mark.parametrize("short", [True, False])
def test_a_rank_that_failed_or_is_elsewhere_ends_it_on_all(short):
    def failing(context):
        failures = {"m0": "ValueError: no"} if context.rank == 1 else {}
        return sync(context, states_of([1.0], 2), short or context.rank == 1, failures=failures.items())

    def elsewhere(context):
        return sync(context, states_of([1.0], 2), short or context.rank == 1, number=1 + context.rank)

    def different(context):
        return sync(context, states_of([1.0] * (1 + context.rank), 2), short or context.rank == 1)

    for body, words in ((failing, "ValueError: no"), (elsewhere, "number"), (different, "m1")):
        outcomes = try_ranks(2, body)
        assert all(isinstance(outcome, DesyncError) and words in str(outcome) for outcome in outcomes), (
            outcomes
        )
        assert str(outcomes[0]) == str(outcomes[1])


def test_the_report_counts_one_gather_of_a_frame_and_none_alone():
    def body(context):
        states = {"sum": Sum()}
        plan = Plan.of(states)
        way = AdditiveSync.of(plan, context.world_size, None)
        assert way is not None
        return way.exchange(snapshot(states, plan), context.channel, Ticket(1, {}))[1]

    (alone,), (one, _) = run_ranks(1, body), run_ranks(2, body)
    assert (alone.collectives, alone.sent_bytes, alone.waited) == (0, 0, 0.0)
    assert (one.collectives, one.sent_bytes) == (1, Frame(2).tensor.nbytes)
    assert 0 < one.waited < one.seconds
    assert np.isfinite(one.seconds)
