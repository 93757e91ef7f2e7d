"""Clipping under every kind of parallel training, against torch on one process with the whole batch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor

from hjepa_dist_metrics import ConfigError, GradientClipping, MetricCollection
from hjepa_dist_metrics.parallel.sharding.parameter_shards import clean_name, model_shards
from tests.helpers.layouts import CASES, Net, backward, data, held_parameters, loss_of, reference

MAX_NORM = 0.5
# Parameters of several modules in one: no group can hold some of them.
FLAT = ("fsdp1_flat", "fsdp1_no_shard")


def full_gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return every gradient whole, by name."""
    units = FullyShardedDataParallel.fsdp_modules(model)
    if units and not units[0]._handle._use_orig_params:
        return flat_gradients(model)
    if units:
        with FullyShardedDataParallel.summon_full_params(model, with_grads=True):
            return stored_gradients(model)
    return stored_gradients(model)


def flat_gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Put FSDP1's flat gradients together from all ranks' shards, take them apart by FSDP1's own lists."""
    found = {}
    for place, unit in model.named_modules():
        if not isinstance(unit, FullyShardedDataParallel):
            continue
        flat = unit._handle.flat_param
        shards = [flat.grad]
        if unit._handle.uses_sharded_strategy:
            shards = [torch.empty_like(flat.grad) for _ in range(dist.get_world_size())]
            dist.all_gather(shards, flat.grad)
        whole = torch.cat([shard.reshape(-1) for shard in shards])[: sum(flat._numels)]
        parts = zip(flat._fqns, flat._shapes, whole.split(list(flat._numels)), strict=True)
        found |= {clean_name(f"{place}.{name}".lstrip(".")): part.view(shape) for name, shape, part in parts}
    return found


def stored_gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in held_parameters(model):
        gradient = parameter.grad
        if gradient is not None and parameter.requires_grad:  # FSDP1 shows zeros of what is frozen
            whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
            found[clean_name(name)] = whole.detach().clone()
    return found


def clip_in(layout: str) -> tuple[float, dict[str, float], dict[str, torch.Tensor], list[str]]:
    model = backward(layout)
    first = [p for n, p in held_parameters(model) if "blocks" in n]
    rest = [p for n, p in held_parameters(model) if "blocks" not in n]
    clipping = GradientClipping(model, groups={"blocks": first, "rest": rest})
    norm = clipping.clip_(MAX_NORM)
    values = {tag: float(v) for tag, v in MetricCollection({"clip": clipping}).compute().items()}
    return float(norm), values, full_gradients(model), [s.name for s in model_shards(model)]


def norm_of(net: nn.Module, *, blocks: bool | None = None) -> float:
    chosen = [p for n, p in net.named_parameters() if blocks is None or ("blocks" in n) == blocks]
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in chosen if p.grad is not None))


@pytest.mark.parametrize(("layout", "ranks"), CASES)
def test_norm_and_clipped_gradients_are_those_of_one_process(gloo, layout: str, ranks: int):
    net = reference()
    whole, blocks, rest = norm_of(net), norm_of(net, blocks=True), norm_of(net, blocks=False)
    nn.utils.clip_grad_norm_(net.parameters(), MAX_NORM)
    expected = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    for norm, values, gradients, names in gloo(ranks).run(clip_in, layout):
        assert norm == pytest.approx(whole, rel=1e-5)
        assert values["gradient/global_norm_before_clip"] == pytest.approx(whole, rel=1e-5)
        assert values["gradient/global_norm_after_clip"] == pytest.approx(MAX_NORM, rel=1e-5)
        if layout not in FLAT:
            coefficient = MAX_NORM / whole
            assert values["gradient/blocks/global_norm_before_clip"] == pytest.approx(blocks, rel=1e-5)
            assert values["gradient/rest/global_norm_before_clip"] == pytest.approx(rest, rel=1e-5)
            assert values["gradient/rest/global_norm_after_clip"] == pytest.approx(
                rest * coefficient, rel=1e-5
            )
        assert sorted(names) == sorted(n for n, _ in net.named_parameters())
        assert set(gradients) == set(expected)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7)


def fsdp2_with_unused_parameters() -> nn.Module:
    net = Net()
    net.spare = nn.Parameter(torch.ones(7))
    model = fully_shard(net)
    loss_of(model(data())).backward()
    assert net.spare.grad is None
    return model


def clip_badly(kind: str) -> str:
    model = fsdp2_with_unused_parameters()
    try:
        if kind == "device":
            model.elsewhere = nn.Linear(2, 2, device="meta")
        clipping = GradientClipping(model)
        if kind == "none":
            model.zero_grad()
        if kind == "later":
            model.more = nn.Linear(2, 2)
        clipping.clip_({"zero": 0.0, "nan": math.nan}.get(kind, 1.0))
    except ConfigError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("zero", "max_norm must be positive"),
        ("nan", "max_norm must be positive"),
        ("none", "no parameter has a gradient"),
        ("later", "of which 2 are new"),
        ("device", "'elsewhere.weight' is on meta"),
    ],
)
def test_bad_input_is_an_error_on_every_rank(gloo, kind, message):
    for text in gloo(2).run(clip_badly, kind):
        assert message in text


def flat_parameters_without_their_model() -> str:
    model = FullyShardedDataParallel(Net(), use_orig_params=True, device_id=torch.device("cpu"))
    try:
        GradientClipping(model.parameters())
    except ConfigError as error:
        return str(error)
    return "no error"


def test_parameters_of_fsdp1_need_their_model(gloo):
    for text in gloo(2).run(flat_parameters_without_their_model):
        assert "pass the model" in text
