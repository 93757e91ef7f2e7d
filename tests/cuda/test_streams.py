"""Copies to and from pinned memory hold what their source held when they were queued, on any stream."""

from __future__ import annotations

import pytest
import torch

from hjepa_dist_metrics import MetricCollection, WeightedMean
from hjepa_dist_metrics.logging.host_copy import HostCopy, take_numbers
from hjepa_dist_metrics.monitor.observers.phase_clock import PhaseClock
from hjepa_dist_metrics.states import Covariance, Sum
from hjepa_dist_metrics.states.base import moved, to_device
from tests.cuda.device import device, keep_busy, side_stream, there, waiting_is_an_error

ROUNDS = 50


@pytest.fixture(params=["default", "side"], autouse=True)
def stream(request):
    if request.param == "default":
        yield
    else:
        with side_stream():
            yield


def test_a_host_copy_holds_what_was_there():
    x = torch.zeros(100_000, device=device())
    copies = []
    with waiting_is_an_error():
        for i in range(ROUNDS):
            keep_busy(1_000_000)
            x.fill_(float(i))
            copies.append(HostCopy(x))
        x.fill_(-1.0)
    for i, copy in enumerate(copies):
        assert copy.wait().unique().tolist() == [float(i)]


def test_numbers_of_one_step_come_in_one_copy():
    x = torch.zeros((), device=device())
    taken = []
    for i in range(ROUNDS):
        keep_busy(1_000_000)
        x.fill_(float(i))
        taken.append(take_numbers({"x": x, "i": i, "twice": x * 2}))
    for i, finish in enumerate(taken):
        assert {tag: float(value) for tag, value in finish().items()} == {"x": i, "i": i, "twice": 2 * i}


def test_pinned_memory_is_not_used_again_before_its_copy_is_done():
    sent = []
    for i in range(ROUNDS):
        keep_busy(1_000_000)
        sent.append(to_device(torch.full((10_000,), float(i)), device()))
    for i, tensor in enumerate(sent):
        assert tensor.unique().tolist() == [float(i)]


def test_a_snapshot_holds_what_the_states_were():
    collection = MetricCollection({"m": WeightedMean("m")})
    handles = []
    for i in range(1, ROUNDS + 1):
        keep_busy(1_000_000)
        with waiting_is_an_error():
            collection["m"].update(torch.full((), float(i), device=device()), 1)
            handles.append(collection.compute_async())
    means = [float(handle.result(60)["m"]) for handle in handles]
    assert means == pytest.approx([(i + 1) / 2 for i in range(1, ROUNDS + 1)], rel=1e-12)


def test_what_goes_to_the_host_is_waited_for():
    """States of two devices merge: a copy to the host that is not waited for would hold anything."""
    for i in range(5):
        one, other = Covariance(64), Covariance(64)
        rows = torch.full((3, 64), float(i))
        one.update(rows)
        keep_busy()
        other.update(there(rows) + 1.0)
        merged = one.merge(other)
        assert merged.mean.tolist() == [i + 0.5] * 64
        total = Sum()
        total.update(torch.full((), float(i), device=device()))
        assert Sum().merge(total).value == i
        keep_busy()
        assert (
            moved(torch.full((1000,), float(i), device=device()), torch.device("cpu")).tolist()
            == [float(i)] * 1000
        )


def test_phases_are_timed_on_their_stream():
    clock, found = PhaseClock(device()), {}
    with waiting_is_an_error():
        with clock.phase("busy"):
            keep_busy()
        with clock.phase("idle"):
            pass
    torch.zeros(1, device=device()).sum().item()  # waits for the stream
    clock.collect(found.__setitem__)
    assert set(found) == {"busy", "idle"}
    assert found["busy"] >= found["idle"] >= 0
