"""The watch for waits finds them: each way to wait that the library must not take raises."""

import pytest
import torch

from hjepa_dist_metrics.states.base import moved
from tests.helpers.waiting import DEVICE, WaitsForDevice, no_waiting, on_device

WAITS = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "branch": lambda x: 1 if x.sum() > 0 else 2,
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "numpy": lambda x: x.numpy(),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "mask": lambda x: x[x > 0],
    "assign": lambda x: x.__setitem__(x > 0, 0.0),
    "list": lambda x: x[[0, 2]],
    "select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "bincount": lambda x: x.long().bincount(),
    "equal": lambda x: torch.equal(x, x + 1),
    "numbers": lambda x: x + torch.tensor([1.0, 2.0, 3.0], device=DEVICE),
    "number": lambda x: x + torch.as_tensor(2.0, device=DEVICE),
    "from_host": lambda x: x + torch.ones(3).to(DEVICE),
    "copy_from_host": lambda x: x.copy_(torch.ones(3)),
    "copy_to_host": lambda x: torch.ones(3).copy_(x),
}


UNFINISHED = {
    "to": lambda x: x.to("cpu", non_blocking=True),
    "copy": lambda x: torch.ones(3).copy_(x, non_blocking=True),
}


@pytest.mark.parametrize("name", UNFINISHED)
def test_a_copy_to_the_host_that_nothing_waits_for_is_found(name):
    x = on_device(torch.ones(3))
    with pytest.raises(WaitsForDevice, match="may be anything"), no_waiting():
        UNFINISHED[name](x)


@pytest.mark.parametrize("name", WAITS)
def test_a_wait_is_found(name):
    x = on_device(torch.ones(3))
    with pytest.raises((WaitsForDevice, RuntimeError, TypeError)), no_waiting():
        WAITS[name](x)


def test_moving_waits_for_copies_to_the_host_alone():
    x, host = on_device(torch.ones(3)), torch.ones(3)
    with no_waiting():
        assert moved(host, DEVICE, torch.float64).dtype == torch.float64
        assert moved(x, DEVICE) is x
        with pytest.raises(WaitsForDevice, match="and waits"):
            moved(x, host.device)


def test_what_does_not_wait_is_let_through():
    x, host = on_device(torch.ones(3)), torch.ones(3)
    with no_waiting():
        y = torch.where(x > 0, x, 0.0) * 2 + 1.0
        y = y[:2].sum() + torch.full_like(y, 3.0)
        y.add_(host.to(DEVICE, non_blocking=True))
        assert float(host.sum()) == 3.0
        assert host[host > 0].tolist() == [1.0, 1.0, 1.0]
