"""Snapshots: host copies that later updates do not touch, wherever the states live."""

from __future__ import annotations

import sys

import torch

from hjepa_dist_metrics.distributed import ProcessContext, open_channel
from hjepa_dist_metrics.states import ClassScatter, Concat, Covariance, Distinct, Max, Moments, Sum
from hjepa_dist_metrics.sync import Plan, Snapshot, Ticket, exchange, snapshot, snapshot as take
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


class LateEvent:
    """Stands for a copy from a device that arrives when it is waited for."""

    def __init__(self, host: torch.Tensor, device: torch.Tensor) -> None:
        self.host, self.device = host, device.clone()

    def synchronize(self) -> None:
        self.host.copy_(self.device)


def test_nothing_is_read_before_its_copy_from_a_device_has_arrived(monkeypatch):
    states = {"s": Sum(), "c": Covariance(2), "x": Concat(9, 2), "i": ClassScatter(2), "d": Distinct(8)}
    rows = torch.arange(12.0).reshape(6, 2)
    for state in (states["s"], states["c"], states["x"]):
        state.update(rows)
    states["i"].update(rows, None, rows[:, None] - 1.0, None)
    states["d"].update(torch.tensor([3, 3, 5]))
    plan, context = Plan.of(states), ProcessContext.current()
    expected, _ = exchange(snapshot(states, plan), open_channel(context, 1.0), Ticket(1, {}))

    def late(taken, flat):
        host = torch.full_like(flat, 77)
        taken.copies.append(LateEvent(host, flat))
        return host

    monkeypatch.setattr(sys.modules[snapshot.__module__], "_to_host", late)
    found, _ = exchange(snapshot(states, plan), open_channel(context, 1.0), Ticket(1, {}))
    assert all(same_bits(found[name], expected[name]) for name in states)
