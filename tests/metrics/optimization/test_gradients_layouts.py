"""Gradient flow under every kind of parallel training, against NumPy on one process's gradients."""

from __future__ import annotations

import numpy as np
import pytest
from torch.distributed.device_mesh import init_device_mesh

from hjepa_dist_metrics import GradientFlow, MetricCollection, ProcessContext
from hjepa_dist_metrics.values import Histogram, Scalar
from tests.helpers.layouts import CASES, backward, reference


def flow_in(layout: str, per_parameter: bool = True) -> tuple[dict[str, float], dict[str, Histogram]]:
    flow = GradientFlow(backward(layout), depth=2, per_parameter=per_parameter)
    flow.update()
    values = MetricCollection({"flow": flow}).compute()
    scalars = {tag: value.value for tag, value in values.items() if isinstance(value, Scalar)}
    return scalars, {tag: value for tag, value in values.items() if isinstance(value, Histogram)}


def elements(net, prefix: str) -> np.ndarray:
    found = [
        p.grad.double().numpy().ravel()
        for n, p in net.named_parameters()
        if (n == prefix or n.startswith(prefix + ".")) and p.grad is not None
    ]
    return np.concatenate(found) if found else np.zeros(0)


def described(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return dict.fromkeys(["mean", "max", "min", "std", "total_norm", "zero_fraction"], 0.0)
    return {
        "mean": np.abs(values).mean(),
        "max": np.abs(values).max(),
        "min": np.abs(values).min(),
        "std": values.std(ddof=1) if len(values) > 1 else 0.0,
        "total_norm": np.sqrt(values @ values),
        "zero_fraction": (values == 0).mean(),
    }


MODULES = ["embed", "blocks.0", "blocks.1", "head", "frozen"]
PARAMETERS = ["embed.weight", "blocks.0.norm.weight", "blocks.1.up.bias", "blocks.1.down.weight", "head.bias"]


@pytest.mark.parametrize(("layout", "ranks"), CASES)
def test_every_layout_gives_the_numbers_of_one_process(gloo, layout: str, ranks: int):
    net = reference()
    everything = elements_of_all(net)
    for scalars, histograms in gloo(ranks).run(flow_in, layout):
        expected_norm = np.sqrt(everything @ everything)
        assert scalars["gradients/global_norm"] == pytest.approx(expected_norm, rel=1e-5)
        assert scalars["gradients/nonfinite"] == 0
        for name in [*MODULES, *PARAMETERS]:
            values = elements(net, name)
            for key, expected in described(values).items():
                # float32 sums over ranks in another order move the smallest element
                slack = 3e-7 * np.abs(everything).max() if key in ("min", "mean") else 0
                found = scalars[f"gradients/{name}_{key}"]
                assert found == pytest.approx(expected, rel=1e-5, abs=slack), (name, key)
            assert histograms[f"gradients/{name}"].count == len(values), name
        ratio = (
            described(elements(net, "blocks.1"))["total_norm"]
            / described(elements(net, "blocks.0"))["total_norm"]
        )
        assert scalars["gradients/ratio_1"] == pytest.approx(ratio, rel=1e-5)


def elements_of_all(net) -> np.ndarray:
    return np.concatenate([p.grad.double().numpy().ravel() for p in net.parameters() if p.grad is not None])


@pytest.mark.parametrize(("layout", "ranks"), [("tensor_parallel", 2), ("ddp", 2), ("plain", 2)])
def test_histogram_counts_are_those_of_numpy(gloo, layout: str, ranks: int):
    """Where the gradients' bits are those of one process but for rounding, hardly a count moves."""
    net = reference()
    for _, histograms in gloo(ranks).run(flow_in, layout):
        for name in MODULES[:-1]:
            found = histograms[f"gradients/{name}"]
            expected = np.histogram(elements(net, name), bins=found.edges)[0]
            assert expected.sum() == found.count
            assert np.abs(expected - found.counts).sum() <= (0 if layout == "plain" else 0.02 * found.count)


def flow_over_data_parallel_ranks(layout: str) -> dict[str, float]:
    """Merge over the data-parallel ranks alone: what tensor-parallel ranks hold must count all the same."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    context = ProcessContext.current(mesh, dims=["dp"])
    flow = GradientFlow(backward(layout), depth=2, context=context)
    flow.update()
    values = MetricCollection({"flow": flow}, context).compute()
    numbers = {tag: value.value for tag, value in values.items() if isinstance(value, Scalar)}
    return numbers | {f"{tag}/count": v.count for tag, v in values.items() if isinstance(v, Histogram)}


@pytest.mark.parametrize("layout", ["fsdp2_tensor_parallel", "ddp_tensor_parallel"])
def test_a_sync_over_data_parallel_ranks_sees_the_whole_model(gloo, layout: str):
    net = reference()
    for values in gloo(4).run(flow_over_data_parallel_ranks, layout):
        for name in MODULES:
            part = elements(net, name)
            assert values[f"gradients/{name}/count"] == len(part)
            for key in ("max", "std", "total_norm"):
                assert values[f"gradients/{name}_{key}"] == pytest.approx(described(part)[key], rel=1e-5)
