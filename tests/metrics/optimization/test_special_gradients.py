"""Gradients that are not plain float32, over ranks, against NumPy on the whole gradients that they hold."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from hjepa_dist_metrics import GradientClipping, GradientFlow, MetricCollection
from hjepa_dist_metrics.parallel.sharding.parameter_shards import clean_name
from hjepa_dist_metrics.values import Histogram, Scalar
from tests.helpers.layouts import Net, data, loss_of, part
from tests.metrics.optimization.test_gradients_layouts import described


def mine() -> torch.Tensor:
    return part(dist.get_rank(), dist.get_world_size())


def fsdp2_in_bfloat16() -> nn.Module:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = fully_shard(Net().to(torch.bfloat16), mp_policy=policy)
    loss_of(model(data().to(torch.bfloat16))).backward()
    return model


def ddp_in_bfloat16() -> nn.Module:
    model = DistributedDataParallel(Net().to(torch.bfloat16))
    loss_of(model(mine().to(torch.bfloat16))).backward()
    return model


def ddp_with_sparse_gradients() -> nn.Module:
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Embedding(20, 3, sparse=True))
    rows = torch.tensor([1, 1, 4, 7]) + dist.get_rank()
    (model(rows) * torch.arange(1.0, 5.0)[:, None]).sum().backward()
    return model


def fsdp2_with_unused_parameters() -> nn.Module:
    net = Net()
    net.spare = nn.Parameter(torch.ones(7))
    model = fully_shard(net)
    loss_of(model(data())).backward()
    assert net.spare.grad is None
    return model


def ddp_with_unused_parameters() -> nn.Module:
    net = Net()
    net.spare = nn.Parameter(torch.ones(7))
    model = DistributedDataParallel(net, find_unused_parameters=True)
    loss_of(model(mine())).backward()
    assert net.spare.grad is None
    return model


def scaled(model: nn.Module) -> nn.Module:
    """Scale the loss by a number that is no power of two, and unscale the gradients."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    optimizers = [
        torch.optim.SGD([p for name, p in trained if ("blocks" in name) == inner]) for inner in (False, True)
    ]
    scaler = torch.amp.GradScaler("cpu", init_scale=1000.0)
    scaler.scale(loss_of(model(mine()))).backward()
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    return model


def ddp_under_a_scaler() -> nn.Module:
    return scaled(DistributedDataParallel(Net()))


def fsdp2_under_a_scaler() -> nn.Module:
    return scaled(fully_shard(Net()))


SPECIAL = (
    fsdp2_in_bfloat16,
    ddp_in_bfloat16,
    ddp_with_sparse_gradients,
    fsdp2_with_unused_parameters,
    ddp_with_unused_parameters,
    ddp_under_a_scaler,
    fsdp2_under_a_scaler,
)
every_kind = pytest.mark.parametrize(
    ("make", "ranks"), [(make, ranks) for make in SPECIAL for ranks in (2, 4)]
)


def whole_gradients(model: nn.Module) -> dict[str, np.ndarray]:
    """Return every gradient's elements by name; of a sparse one, those that are stored."""
    found = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if gradient is not None:
            whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
            stored = whole.coalesce().values() if whole.is_sparse else whole
            found[clean_name(name)] = stored.detach().double().numpy().ravel()
    return found


def norms_in(make) -> tuple[float, float, float]:
    """Return ours, that of the whole gradients in float64, and ours after clipping to half of it."""
    model = make()
    everything = np.concatenate(list(whole_gradients(model).values()))
    expected = math.sqrt(everything @ everything)
    clipping = GradientClipping(model)
    before = float(clipping.clip_(expected / 2))
    return before, expected, float(clipping.clip_(math.inf))


@every_kind
def test_norms_before_and_after_clipping(gloo, make, ranks):
    for before, expected, after in gloo(ranks).run(norms_in, make):
        assert before == pytest.approx(expected, rel=1e-5)
        assert after == pytest.approx(expected / 2, rel=5e-3 if "bfloat16" in make.__name__ else 1e-5)


def flow_in(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DDP's own, about unused parameters
        model = make()
    flow = GradientFlow(model, depth=2)
    flow.update()
    return MetricCollection({"flow": flow}).compute(), whole_gradients(model)


@every_kind
def test_flow_of_every_module(gloo, make, ranks):
    for values, gradients in gloo(ranks).run(flow_in, make):
        modules = {".".join(name.split(".")[:2][: max(1, name.count("."))]) for name in gradients}
        assert modules
        for module in modules:
            parts = [g for name, g in gradients.items() if name == module or name.startswith(f"{module}.")]
            elements = np.concatenate(parts)
            for key, expected in described(elements).items():
                found = values[f"gradients/{module}_{key}"]
                assert isinstance(found, Scalar)
                assert found.value == pytest.approx(expected, rel=1e-5, abs=1e-12), (module, key)
            histogram = values[f"gradients/{module}"]
            assert isinstance(histogram, Histogram)
            # a power of two begins its bin, seen from zero; NumPy's bins begin on the left
            outwards = np.where(elements < 0, np.nextafter(elements, -np.inf), elements)
            assert (np.histogram(outwards, bins=histogram.edges)[0] == histogram.counts).all()
        if "gradients/spare_total_norm" in values:
            assert values["gradients/spare_total_norm"] == Scalar(0.0)
