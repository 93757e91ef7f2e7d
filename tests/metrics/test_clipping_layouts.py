"""Clipping under every kind of parallel training, against torch on one process with the whole batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from hjepa_dist_metrics import GradientClipping, MetricCollection
from hjepa_dist_metrics.distributed.slots import clean_name, model_slots
from tests.distributed.layouts import CASES, backward, reference

MAX_NORM = 0.5
# Parameters of several modules in one: no group can hold some of them.
FLAT = ("fsdp1_flat", "fsdp1_no_shard")


def full_gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return every gradient whole, by name, except FSDP1's, which cannot be had without its own machinery."""
    found = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if gradient is not None:
            whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
            found[clean_name(name)] = whole.detach().clone()
    return found


def clip_in(layout: str) -> tuple[float, dict[str, float], dict[str, torch.Tensor], list[str]]:
    model = backward(layout)
    first = [p for n, p in model.named_parameters() if "blocks" in n]
    rest = [p for n, p in model.named_parameters() if "blocks" not in n]
    clipping = GradientClipping(model, groups={"blocks": first, "rest": rest})
    norm = clipping.clip_(MAX_NORM)
    values = {tag: float(v) for tag, v in MetricCollection({"clip": clipping}).compute().items()}
    fsdp1 = any(isinstance(m, FullyShardedDataParallel) for m in model.modules())
    return float(norm), values, {} if fsdp1 else full_gradients(model), [s.name for s in model_slots(model)]


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
        if not layout.startswith("fsdp1"):
            assert set(gradients) == set(expected)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7)
