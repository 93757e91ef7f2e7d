"""Snapshots: host copies that later updates do not touch, wherever the states live."""

from __future__ import annotations

import torch

from hjepa_dist_metrics.states import Concat, Covariance, Max, Moments, Sum
from hjepa_dist_metrics.sync import Plan, Snapshot, snapshot, snapshot as take
from tests.states.splits import same_bits


def test_a_plan_is_kept_while_the_set_of_states_stays_what_it_is():
    states = {"a": Sum(), "b": Moments((2,)), "c": Covariance(2)}
    plan = Plan.of(states)
    states["a"].update(3.0)
    assert Plan.of(states, plan) is plan
    assert Plan.of({**states, "d": Sum()}, plan) is not plan
    assert Plan.of({**states, "a": Max()}, plan).schema != plan.schema
    assert Plan.of(dict(reversed(states.items())), plan).schema == plan.schema


def test_row_states_of_one_class_travel_as_one_block():
    states = {f"m{i}": Moments() for i in range(5)} | {"s": Sum(), "wide": Moments((3,))}
    plan = Plan.of(states)
    assert {(group.kind.__name__, group.scalar, group.shape) for group in plan.groups} == {
        ("Moments", True, (4, 5)),
        ("Moments", False, (4, 3)),
        ("Sum", True, (1, 1)),
    }


def test_later_updates_do_not_show_in_a_copy():
    states = {"s": Sum(), "c": Covariance(2), "x": Concat(9, 2)}
    for name, state in states.items():
        state.update(torch.ones(2, 2) if name != "s" else torch.ones(2))
    plan = Plan.of(states)
    taken = snapshot(states, plan)
    before = {name: state.adopt(dict(state.pack())) for name, state in taken.others.items()}
    for tensor in states["c"].pack().values():
        tensor.add_(7.0)
    states["s"].data.add_(7.0)
    assert taken.rows()[0].tolist() == [[2.0]]
    assert all(same_bits(state, before[name]) for name, state in taken.others.items())
    assert taken.others["c"].count == 2


def test_without_a_copy_host_states_are_taken_as_they_are():
    states = {"c": Covariance(2)}
    assert take(states, Plan.of(states), copy=False).others["c"] is states["c"]


def test_columns_from_several_devices_come_back_in_place():
    states = {name: Sum((2,)) for name in ("a", "b", "c")}
    plan = Plan.of(states)
    near, far = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 2.0, 5.0, 6.0]])
    pieces = [(far, torch.tensor([0, 1, 4, 5])), (near, torch.tensor([2, 3]))]
    assert Snapshot(plan, states, [pieces]).rows()[0].tolist() == [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]
