"""Gradients and weights of every scale and offset that their type holds, against NumPy on scaled float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from hjepa_dist_metrics import GradientClipping, GradientFlow, MetricCollection
from hjepa_dist_metrics.metrics import Updates
from hjepa_dist_metrics.metrics.kernels import elements_device, elements_host
from hjepa_dist_metrics.metrics.kernels.moments import standard_deviation
from hjepa_dist_metrics.values import Scalar
from tests.helpers.ranks import run_ranks

pytestmark = pytest.mark.accuracy

SHAPES = ((7, 5), (20_003,), (130, 130), (1,))
CASES = [
    *[(torch.float32, scale) for scale in (1e-40, 1e-30, 1e-25, 1e-18, 1e-12, 1.0, 1e18, 1e25, 1e33)],
    *[(torch.float64, scale) for scale in (1e-310, 1e-300, 1e-200, 1e-160, 1.0, 1e160, 1e200, 1e300)],
    *[(torch.bfloat16, scale) for scale in (1e-30, 1e30)],
    *[(torch.float16, scale) for scale in (1e-6, 1e4)],
]


def model_of(scale: float, dtype: torch.dtype, offset: float = 0.0) -> nn.ParameterDict:
    """Give gradients of this scale, whose means lie `offset` standard deviations from zero."""
    generator = torch.Generator().manual_seed(0)
    model = nn.ParameterDict()
    for index, shape in enumerate(SHAPES):
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64) + offset
        gradient = (drawn * scale).to(dtype)
        model[f"p{index}"] = nn.Parameter(torch.zeros_like(gradient))
        model[f"p{index}"].grad = gradient
    return model


def scaled(model: nn.Module, scale: float) -> dict[str, np.ndarray]:
    """Return the gradients over `scale`, in float64 and exact but for the division's rounding."""
    return {name: p.grad.double().numpy().ravel() / scale for name, p in model.named_parameters()}


def close(found: float, expected: float, scale: float, rel: float = 1e-6) -> bool:
    return math.isfinite(found) and math.isclose(found / scale, expected, rel_tol=rel)


@pytest.mark.parametrize(("dtype", "scale"), CASES)
def test_clipping_and_flow_agree_at_every_scale(dtype: torch.dtype, scale: float):
    model = model_of(scale, dtype)
    plain = scaled(model, scale)
    norm = float(np.linalg.norm(np.concatenate(list(plain.values()))))
    flow = GradientFlow(model, per_parameter=True)
    flow.update()
    values = {tag: v.value for tag, v in flow.compute().items() if isinstance(v, Scalar)}
    assert values["gradients/nonfinite"] == 0
    assert close(values["gradients/global_norm"], norm, scale)
    for name, x in plain.items():
        assert close(values[f"gradients/{name}_total_norm"], float(np.linalg.norm(x)), scale)
        std = float(x.std(ddof=1)) if len(x) > 1 else 0.0
        assert std == 0 or close(values[f"gradients/{name}_std"], std, scale)
        assert close(values[f"gradients/{name}_mean"], float(np.abs(x).mean()), scale)
    clipping = GradientClipping(model)
    target = norm / 4 * scale
    clipping.clip_(max(target, 5e-324))
    tags = {tag: float(value) for tag, value in clipping.compute().items()}
    assert close(tags["gradient/global_norm_before_clip"], norm, scale)
    if norm * scale > 10 and dtype in (torch.float32, torch.float64):  # torch adds 1e-6 to the norm
        for name, x in scaled(model, scale).items():
            np.testing.assert_allclose(x, plain[name] / 4, rtol=1e-6)


@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", ["host", "device"])
def test_a_mean_however_far_costs_no_digits(kernel: str, dtype: torch.dtype, offset: float):
    tensors = [p.grad for p in model_of(1e-3, dtype, offset).parameters()]
    if kernel == "host":
        each = elements_host.read(tensors, [0] * len(tensors), 1, False).each
    else:
        each = elements_device.stats(tensors)
    pooled = each.by_column([0] * len(tensors), 1)
    parts = [t.double().numpy().ravel() for t in tensors]
    for stats, columns in ((each, parts), (pooled, [np.concatenate(parts)])):
        for i, x in enumerate(columns):
            if len(x) > 1:
                found = standard_deviation(len(x), float(stats.sums[2, i]), float(stats.spread[i]))
                assert found == pytest.approx(float((x - x.mean()).std(ddof=1)), rel=1e-5)


def test_the_row_of_the_table():
    weight = nn.Parameter(torch.zeros(50_000))
    weight.grad = torch.randn(50_000, generator=torch.Generator().manual_seed(1)) * 1e-3 + 1e4
    flow = GradientFlow(nn.ParameterDict({"w": weight}))
    flow.update()
    found = flow.compute()["gradients/w_std"].value
    assert found == pytest.approx(weight.grad.double().numpy().std(ddof=1), rel=1e-6)
    assert found > 5e-4


def sharded_by_hand(context, dtype: torch.dtype, scale: float, offset: float) -> dict[str, float]:
    """Let each of the ranks hold a part of one gradient, as shards do."""
    from hjepa_dist_metrics.states.ranks.sharded import SHARD

    model = model_of(scale, dtype, offset)
    flow = GradientFlow(model)
    flow.segments.parts.roles.fill_(SHARD)
    flow.segments.parts.norm_roles.fill_(SHARD)
    for parameter in model.parameters():
        parts = parameter.grad.reshape(-1).tensor_split(context.world_size)
        parameter.grad = None
        parameter.data = parts[context.rank].clone()
        parameter.grad = parts[context.rank]
    flow.update()
    values = MetricCollection({"flow": flow}, context).compute()
    return {tag: v.value for tag, v in values.items() if isinstance(v, Scalar)}


@pytest.mark.parametrize(
    ("dtype", "scale", "offset"),
    [
        (torch.float64, 1e200, 0),
        (torch.float64, 1e-200, 0),
        (torch.float32, 1e25, 0),
        (torch.float32, 1, 1e6),
    ],
)
def test_shards_merge_at_every_scale(dtype: torch.dtype, scale: float, offset: float):
    everything = np.concatenate(list(scaled(model_of(scale, dtype, offset), scale).values()))
    std = float((everything - everything.mean()).std(ddof=1))
    for values in run_ranks(3, lambda context: sharded_by_hand(context, dtype, scale, offset)):
        assert close(values["gradients/global_norm"], float(np.linalg.norm(everything)), scale)
        whole = [values[f"gradients/p{i}_std"] for i in range(len(SHAPES))]
        assert all(v == 0 or math.isclose(v / scale, std, rel_tol=0.3) for v in whole)
        x = scaled(model_of(scale, dtype, offset), scale)["p1"]
        assert close(whole[1], float((x - x.mean()).std(ddof=1)), scale, rel=1e-5)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float32, 1e-20), (torch.float32, 1e25), (torch.float64, 1e-200), (torch.float64, 1e200)],
)
def test_update_ratios_at_every_scale(dtype: torch.dtype, scale: float):
    model = model_of(scale, dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(2 * parameter.grad + scale)
    before = np.concatenate([p.detach().double().numpy().ravel() / scale for p in model.parameters()])
    moved = 0.25 * np.concatenate(list(scaled(model, scale).values()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    updates = Updates(model, optimizer)
    with updates.around():
        optimizer.step()
    tags = {tag: float(value) for tag, value in updates.compute().items()}
    assert close(tags["weights/group0_norm"], float(np.linalg.norm(before)), scale)
    assert close(tags["weights/group0_std"], float(before.std(ddof=1)), scale)
    ratio = float(np.linalg.norm(moved) / np.linalg.norm(before))
    assert tags["update/group0_ratio"] == pytest.approx(ratio, rel=1e-5)
