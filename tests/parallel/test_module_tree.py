"""Every way in which a model can come to hold other parameters is seen, by a look or by a full reading."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hjepa_dist_metrics import ConfigError
from hjepa_dist_metrics.metrics.optimization.tracked_parameters import TrackedParameters
from hjepa_dist_metrics.parallel.module_tree import ModuleTree


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 3, bias=False), nn.GELU()))


def replace(m):
    m[0].weight = nn.Parameter(torch.zeros(3, 2))


def extend(m):
    m[1].append(nn.Linear(3, 1))


def swap_child(m):
    m[1][0] = nn.Linear(3, 3, bias=False)


def register(m):
    m[1][1].register_parameter("scale", nn.Parameter(torch.ones(1)))


def remove(m):
    m[0].bias = None


@pytest.mark.parametrize("change", [replace, extend, swap_child, register, remove])
def test_a_change_is_seen(change):
    built = model()
    tree, watched = ModuleTree(built, list(built.parameters())), TrackedParameters(built)
    assert tree.is_unchanged()
    watched.require_unchanged()
    change(built)
    assert not tree.is_unchanged()
    with pytest.raises(ConfigError, match="the parameters changed"):
        watched.require_unchanged()


def test_values_and_buffers_may_change():
    built = model()
    built[0].register_buffer("steps", torch.zeros(1))
    tree = ModuleTree(built, list(built.parameters()))
    built.double()
    built[0].steps = torch.ones(1)
    assert tree.is_unchanged()


def test_a_model_that_shows_other_tensors_than_its_parameters_is_read_in_full():
    built = model()
    stored = [nn.Parameter(p.detach().clone()) for p in built.parameters()]
    assert not ModuleTree(built, stored).is_unchanged()
