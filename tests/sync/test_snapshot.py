"""Snapshots: host copies that later updates do not touch, wherever the states live."""

from __future__ import annotations

import sys

import numpy as np
import torch

from hjepa_dist_metrics.states import ClassScatter, Concat, Covariance, Distinct, Max, Moments, Sum
from hjepa_dist_metrics.sync.manifest import Manifest
from hjepa_dist_metrics.sync.payload import Payload
from hjepa_dist_metrics.sync.snapshot import Snapshot, snapshot
from tests.helpers.splits import same_bits


def test_a_manifest_describes_the_set_of_states_while_it_stays_what_it_is():
    states = {"a.s": Sum(), "b.s": Moments((2,)), "c.s": Covariance(2)}
    manifest = Manifest(states)
    states["a.s"].update(3.0)
    assert manifest.describes(states, None)
    assert not manifest.describes({**states, "d.s": Sum()}, None)
    assert not manifest.describes({**states, "a.s": Max()}, None)
    assert Manifest({**states, "a.s": Max()}).digest != manifest.digest
    assert Manifest(dict(reversed(states.items()))).digest == manifest.digest


def test_row_states_of_one_class_lie_in_one_block():
    states = {f"m{i}.s": Moments() for i in range(5)} | {"s.s": Sum(), "w.s": Moments((3,))}
    manifest = Manifest(states)
    shapes = {(group.kind, group.kind.fields, group.columns) for group in manifest.groups}
    assert shapes == {(Moments, 4, 8), (Sum, 1, 1)}
    assert manifest.numbers == 33


def test_later_updates_do_not_show_in_a_copy():
    states = {"s.s": Sum(), "c.s": Covariance(2), "x.s": Concat(9, 2)}
    for name, state in states.items():
        state.update(torch.ones(2, 2) if name != "s.s" else torch.ones(2))
    taken = snapshot(states, Manifest(states))
    before = {name: state.adopt(dict(state.pack())) for name, state in taken.others.items()}
    for tensor in states["c.s"].pack().values():
        tensor.add_(7.0)
    states["s.s"].data.add_(7.0)
    payload = taken.payload()
    assert payload.numbers.tolist() == [2.0]
    assert all(same_bits(state, before[name]) for name, state in payload.others.items())
    assert payload.others["c.s"].count == 2


def test_columns_from_several_devices_come_back_in_place():
    states = {name: Sum((2,)) for name in ("a.s", "b.s", "c.s")}
    manifest = Manifest(states)
    (group,) = manifest.groups
    near, far = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 2.0, 5.0, 6.0]])
    pieces = [(group, far, np.array([0, 1, 4, 5])), (group, near, np.array([2, 3]))]
    assert Snapshot(manifest, pieces).payload().numbers.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


class LateEvent:
    """Stands for a copy from a device that arrives when it is waited for."""

    def __init__(self, host: torch.Tensor, device: torch.Tensor) -> None:
        self.host, self.device = host, device.clone()

    def synchronize(self) -> None:
        self.host.copy_(self.device)


def test_nothing_is_read_before_its_copy_from_a_device_has_arrived(monkeypatch):
    states = {"s.s": Sum(), "c.s": Covariance(2), "x.s": Concat(9, 2), "i.s": ClassScatter(2)}
    states["d.s"] = Distinct(8)
    rows = torch.arange(12.0).reshape(6, 2)
    for name in ("s.s", "c.s", "x.s"):
        states[name].update(rows)
    states["i.s"].update(rows, None, rows[:, None] - 1.0, None)
    states["d.s"].update(torch.tensor([3, 3, 5]))
    manifest = Manifest(states)
    expected = snapshot(states, manifest).payload().encode()

    def late(taken, flat):
        host = torch.full_like(flat, 77)
        taken.copies.append(LateEvent(host, flat))
        return host

    monkeypatch.setattr(sys.modules[snapshot.__module__], "_to_host", late)
    assert snapshot(states, manifest).payload().encode().tobytes() == expected.tobytes()


def test_a_payload_is_read_as_it_was_written():
    states = {
        "s.s": Sum((3,)),
        "c.s": Covariance(5),
        "x.s": Concat(9, 5, torch.bfloat16),
        "e.s": Concat(2, 1),
    }
    for name in ("c.s", "x.s"):
        states[name].update(torch.randn(4, 5, generator=torch.Generator().manual_seed(0)))
    manifest = Manifest(states)
    payload = snapshot(states, manifest).payload().signed(manifest, 0, 0)
    again = Payload.decode(manifest, payload.encode())
    assert again.numbers.tolist() == payload.numbers.tolist()
    assert list(again.others) == list(payload.others)
    before, after = payload.expanded(), again.expanded()
    assert all(same_bits(after[name], state) for name, state in before.items())
    assert all(same_bits(before[name], states[name]) for name in before)
