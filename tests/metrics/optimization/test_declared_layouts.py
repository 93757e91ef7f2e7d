"""Norms, statistics, clipping and update ratios of every declared layout, against one process."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from hjepa_dist_metrics import (
    ConfigError,
    DesyncError,
    GradientClipping,
    GradientFlow,
    GradientNoise,
    MetricCollection,
    ParallelLayout,
    Updates,
)
from hjepa_dist_metrics.metrics import ReplicaAgreement
from hjepa_dist_metrics.metrics.optimization.noise import signal_and_noise
from hjepa_dist_metrics.values import Histogram, Scalar
from tests.helpers.declared import CASES, UNDECLARED, mesh_of, whole_gradients, whole_values

RATE = 0.25
DIVISOR = 4  # clip to a quarter of the norm


def expected(name: str) -> dict[str, torch.Tensor]:
    return whole_gradients(tied=name == "pp_four_tied")


def norm_of(tensors: Any) -> float:
    return float(np.linalg.norm(np.concatenate([t.double().numpy().ravel() for t in tensors])))


def measured(name: str) -> dict[str, Any]:
    """Return what this rank reads of a layout: norms, statistics, clipped gradients and update ratios."""
    held = CASES[name]()
    optimizer = torch.optim.SGD(held.model.parameters(), lr=RATE)
    flow = GradientFlow(held.model, depth=1, layout=held.layout)
    clipping = GradientClipping(held.model, layout=held.layout)
    updates = Updates(held.model, optimizer, layout=held.layout)
    flow.update()
    norm = norm_of(expected(name).values())
    returned = float(clipping.clip_(norm / DIVISOR).double())
    with updates.around():
        optimizer.step()
    metrics = {"flow": flow, "clipping": clipping, "updates": updates}
    values = MetricCollection(metrics).compute()
    numbers = {tag: v.value for tag, v in values.items() if isinstance(v, Scalar)}
    counts = {tag: v.count for tag, v in values.items() if isinstance(v, Histogram)}
    return {"norm": returned, "numbers": numbers, "counts": counts, "gradients": held.gradients()}


@pytest.mark.parametrize("name", CASES)
def test_every_layout_gives_the_numbers_of_one_process(gloo, name: str):
    whole = expected(name)
    norm = norm_of(whole.values())
    moved = norm / DIVISOR * RATE
    values = {n: v for n, v in whole_values().items() if n in whole}
    covered: set[str] = set()
    for found in gloo(4).run(measured, name):
        numbers = found["numbers"]
        assert found["norm"] == pytest.approx(norm, rel=1e-5)
        assert numbers["gradient/global_norm_before_clip"] == pytest.approx(norm, rel=1e-5)
        assert numbers["gradients/global_norm"] == pytest.approx(norm, rel=1e-5)
        for module in ("embed", "layers"):
            part = np.concatenate(
                [g.double().numpy().ravel() for n, g in whole.items() if n.startswith(module)]
            )
            assert numbers[f"gradients/{module}_total_norm"] == pytest.approx(np.linalg.norm(part), rel=1e-5)
            assert numbers[f"gradients/{module}_std"] == pytest.approx(part.std(ddof=1), rel=1e-5)
            assert numbers[f"gradients/{module}_max"] == pytest.approx(np.abs(part).max(), rel=1e-6)
            assert found["counts"][f"gradients/{module}"] == len(part)
        layers = [norm_of(g for n, g in whole.items() if n.startswith(f"layers.{i}.")) for i in range(4)]
        for i in range(1, 4):
            assert numbers[f"gradients/ratio_{i}"] == pytest.approx(layers[i] / layers[i - 1], rel=1e-5)
        assert numbers["weights/group0_norm"] == pytest.approx(norm_of(values.values()), rel=1e-5)
        assert numbers["update/group0_norm"] == pytest.approx(moved, rel=1e-5)
        assert numbers["update/group0_ratio"] == pytest.approx(moved / norm_of(values.values()), rel=1e-5)
        for full_name, gradient in found["gradients"].items():
            torch.testing.assert_close(gradient, whole[full_name] / DIVISOR, rtol=1e-5, atol=0)
        covered |= set(found["gradients"])
    assert covered == set(whole)


def clip_undeclared(name: str) -> tuple[str, bool]:
    """Return the error of a layout that was not declared, and whether a gradient was scaled before it."""
    held = CASES[name]()
    before = held.gradients()
    try:
        GradientClipping(held.model).clip_(1e-3)
    except DesyncError as error:
        untouched = all(torch.equal(before[n], g) for n, g in held.gradients().items())
        return str(error), untouched
    return "no error", False


@pytest.mark.parametrize("name", UNDECLARED)
def test_a_layout_that_is_not_declared_is_an_error_before_anything_is_scaled(gloo, name: str):
    answers = gloo(4).run(clip_undeclared, name)
    assert all(untouched for _, untouched in answers)
    assert len({text for text, _ in answers}) == 1
    text = answers[0][0]
    assert "ParallelLayout(mesh, " in text
    if name in ("pp_dp", "pp_fsdp"):
        assert 'DeviceMesh(device_type, [[0, 1], [2, 3]], mesh_dim_names=("pp", "dp"))' in text
        assert 'pipeline="pp"' in text
    if name in ("ep_dp", "ep_submesh"):
        assert "[[0, 1], [2, 3]]" in text
        assert r'expert={r"experts\.": "ep"}' in text


def flow_undeclared(name: str) -> str:
    held = CASES[name]()
    flow = GradientFlow(held.model)
    flow.update()
    try:
        MetricCollection({"flow": flow}).compute()
    except DesyncError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize("name", UNDECLARED)
def test_gradient_flow_of_an_undeclared_layout_is_an_error(gloo, name: str):
    for text in gloo(4).run(flow_undeclared, name):
        assert text != "no error"


def collectives_of_later_calls() -> tuple[float, float]:
    """Clip on rank 0 alone, after the first call: a collective would not return."""
    import torch.distributed as dist

    held = CASES["dp"]()
    clipping = GradientClipping(held.model)
    first = float(clipping.clip_(math.inf))
    second = float(clipping.clip_(math.inf)) if dist.get_rank() == 0 else first
    dist.barrier()
    return first, second


def test_copies_are_compared_at_the_first_call_only(gloo):
    for first, second in gloo(4).run(collectives_of_later_calls):
        assert first == second


def bad_declarations() -> list[str]:
    mesh = mesh_of((2, 2), ("pp", "dp"))
    found = []
    for make in (
        lambda: ParallelLayout(mesh, pipeline="stage"),
        lambda: ParallelLayout(mesh, pipeline="pp", data="pp"),
        lambda: ParallelLayout(mesh, expert={"experts": "ep"}),
        lambda: GradientClipping(
            list(CASES["dp"]().model.parameters()), layout=ParallelLayout(mesh, expert={"experts": "dp"})
        ),
    ):
        try:
            make()
        except ConfigError as error:
            found.append(str(error))
    return found


def test_bad_declarations_are_errors(gloo):
    for texts in gloo(4).run(bad_declarations):
        assert len(texts) == 4
        assert "the mesh has the dimensions ['pp', 'dp'], got pipeline=['stage']" in texts[0]
        assert "['pp'] have several" in texts[1]
        assert "got expert['experts']=['ep']" in texts[2]
        assert "model.named_parameters()" in texts[3]


def replicas_of_experts(declared: bool) -> dict[str, float]:
    held = CASES["ep_dp"]()
    metric = ReplicaAgreement(held.model, held.layout if declared else None)
    metric.update(0)
    values = MetricCollection({"replicas": metric}).compute()
    return {tag: v.value for tag, v in values.items() if isinstance(v, Scalar)}


def test_experts_are_no_replicas_that_drifted(gloo):
    for values in gloo(4).run(replicas_of_experts, True):
        assert values["parameters/replica_disagreement"] == 0
    for values in gloo(4).run(replicas_of_experts, False):
        assert values["parameters/replica_disagreement"] > 0


def stage_gradient(stage: int, data: int) -> torch.Tensor:
    return torch.tensor([1.0, 2.0 + stage, 0.5 - data, 3.0 * data - stage])


def noise_over_stages() -> dict[str, float]:
    """Measure the noise of two stages by two data-parallel ranks, each stage in DDP."""
    mesh = mesh_of((2, 2), ("pp", "dp"))
    stage, data = mesh.get_local_rank("pp"), mesh.get_local_rank("dp")
    linear = torch.nn.Linear(4, 1, bias=False)
    model = torch.nn.parallel.DistributedDataParallel(linear, process_group=mesh.get_group("dp"))
    noise = GradientNoise(model, layout=ParallelLayout(mesh, pipeline="pp"))
    with noise.measuring(8):
        model(stage_gradient(stage, data)[None]).sum().backward()
    values = MetricCollection({"noise": noise}).compute()
    return {tag: v.value for tag, v in values.items() if isinstance(v, Scalar)}


def test_gradient_noise_adds_up_over_stages(gloo):
    gradients = [torch.cat([stage_gradient(stage, data) for stage in (0, 1)]) for data in (0, 1)]
    small = sum(float(g.square().sum()) for g in gradients) / 2
    large = float((sum(gradients) / 2).square().sum())
    signal, noise = signal_and_noise(small, 1 / 8, large, 1 / 16)
    for values in gloo(4).run(noise_over_stages):
        assert values["gradients/noise_scale"] == pytest.approx(noise / signal, rel=1e-6)
