import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from hjepa_dist_metrics import ConfigError, DesyncError, GradientFlow, MetricCollection
from hjepa_dist_metrics.metrics.optimization.parameter_partition import one_device
from hjepa_dist_metrics.parallel.sharding.parameter_shards import ParameterShard
from hjepa_dist_metrics.parallel.sharding.placement import WHOLE
from hjepa_dist_metrics.values import Histogram, Scalar, Text
from tests.helpers.ranks import run_ranks, try_ranks

pytestmark = pytest.mark.accuracy


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.context_encoder = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
        self.predictor = nn.Linear(3, 3)
        self.target_encoder = nn.Linear(4, 3).requires_grad_(False)
        self.token = nn.Parameter(torch.zeros(2))


def with_gradients(scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    model = Encoder().to(dtype)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = (torch.randn(parameter.shape, generator=generator) * scale).to(dtype)
    return model


def numbers(values):
    return {tag: value.value for tag, value in values.items() if isinstance(value, Scalar)}


def flow_of(model, **options):
    flow = GradientFlow(model, **options)
    flow.update()
    return flow.compute()


def test_modules_by_the_first_part_of_their_name():
    model = with_gradients()
    values = flow_of(model)
    for name in ("context_encoder", "predictor", "token"):
        part = [p.grad.double().numpy().ravel() for n, p in model.named_parameters() if n.startswith(name)]
        flat = np.concatenate(part)
        assert values[f"gradients/{name}_mean"].value == pytest.approx(np.abs(flat).mean(), rel=1e-6)
        assert values[f"gradients/{name}_avg"].value == values[f"gradients/{name}_mean"].value
        assert values[f"gradients/{name}_max"].value == np.abs(flat).max()
        assert values[f"gradients/{name}_min"].value == np.abs(flat).min()
        assert values[f"gradients/{name}_std"].value == pytest.approx(flat.std(ddof=1), rel=1e-6)
        assert values[f"gradients/{name}_total_norm"].value == pytest.approx(np.linalg.norm(flat), rel=1e-6)
        assert values[f"gradients/{name}_abs_sum"].value == pytest.approx(np.abs(flat).sum(), rel=1e-6)


def test_a_frozen_module_reads_zero():
    values = numbers(flow_of(with_gradients()))
    frozen = {tag: value for tag, value in values.items() if tag.startswith("gradients/target_encoder")}
    assert len(frozen) == 8
    assert set(frozen.values()) == {0.0}


def test_layers_are_compared_in_the_order_of_their_numbers():
    values = numbers(flow_of(with_gradients()))
    net = with_gradients().context_encoder
    norms = [
        math.sqrt(sum(float(p.grad.double().square().sum()) for p in net[i].parameters())) for i in (0, 1)
    ]
    assert values["gradients/ratio_1"] == pytest.approx(norms[1] / norms[0], rel=1e-6)
    assert "gradients/ratio_2" not in values


def test_without_numbered_layers_modules_are_compared():
    model = nn.Module()
    model.a, model.b, model.c = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False), nn.Linear(1, 1)
    model.c.requires_grad_(False)
    model.a.weight.grad, model.b.weight.grad = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 10.0]])
    values = numbers(flow_of(model))
    assert values["gradients/ratio_1"] == pytest.approx(2.0)
    assert values["gradients/b_zero_fraction"] == 0.5
    assert "gradients/ratio_2" not in values


def test_patterns_name_modules():
    model = with_gradients()
    values = numbers(flow_of(model, patterns={"biases": r"bias$", "first": r"\.0\."}))
    biases = [p.grad for n, p in model.named_parameters() if n.endswith("bias") and p.grad is not None]
    first = model.context_encoder[0].weight.grad
    assert values["gradients/biases_max"] == float(torch.cat(biases).abs().max())
    assert values["gradients/first_max"] == float(first.abs().max())
    assert "gradients/other_mean" in values


def test_each_parameter_where_asked():
    model = with_gradients()
    values = flow_of(model, per_parameter=True)
    weight = model.predictor.weight.grad.double().numpy()
    assert values["gradients/predictor.weight_total_norm"].value == pytest.approx(np.linalg.norm(weight))
    assert isinstance(values["gradients/predictor.weight"], Histogram)
    assert "gradients/predictor.weight_total_norm" not in flow_of(model)


def test_numbers_and_histograms_of_one_look_are_those_of_two():
    model = with_gradients()
    numbers_flow, histograms = GradientFlow(model, report="numbers"), GradientFlow(model, report="histograms")
    numbers_flow.update(histograms)
    together, apart = numbers_flow.compute() | histograms.compute(), flow_of(model)
    assert numbers(together) == numbers(apart)
    assert set(together) == set(apart)
    assert (together["gradients/predictor"].counts == apart["gradients/predictor"].counts).all()


def test_the_first_nonfinite_parameter_is_named():
    model = with_gradients()
    model.predictor.bias.grad[1] = math.inf
    model.token.grad[0] = math.nan
    values = flow_of(model)
    assert values["gradients/nonfinite"].value == 2
    # the model's own parameters come before its children's
    assert values["gradients/first_nonfinite"] == Text("token")
    assert math.isnan(values["gradients/token_mean"].value)
    assert math.isfinite(values["gradients/context_encoder_mean"].value)
    assert values["gradients/predictor"].nonfinite == 1
    assert math.isfinite(values["gradients/predictor"].total)
    assert "gradients/first_nonfinite" not in flow_of(with_gradients())


def test_the_latest_gradients_count_and_nothing_before_the_first():
    model = with_gradients()
    flow = GradientFlow(model)
    assert flow.compute() == {}
    flow.update()
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.fill_(0.5)
    flow.update()
    values = numbers(flow.compute())
    count = sum(p.numel() for p in model.parameters() if p.grad is not None)
    assert values["gradients/global_norm"] == pytest.approx(0.5 * math.sqrt(count))
    assert values["gradients/predictor_std"] == pytest.approx(0.0, abs=1e-4)
    flow.reset()
    assert flow.compute() == {}


def test_a_model_without_gradients_reads_zero():
    values = numbers(flow_of(Encoder()))
    assert values["gradients/global_norm"] == 0
    assert values["gradients/predictor_mean"] == 0
    assert not any(tag.startswith("gradients/ratio") for tag in values)


def test_sparse_gradients_are_read_by_their_values():
    embedding = nn.Embedding(10, 3, sparse=True)
    embedding(torch.tensor([1, 1, 4])).sum().backward()
    # rows 1 and 4 have gradients 2 and 1 in each of 3 columns
    assert numbers(flow_of(embedding))["gradients/global_norm"] == pytest.approx(math.sqrt(3 * 4 + 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    model = with_gradients(1e3, dtype)
    values = numbers(flow_of(model))
    flat = np.concatenate([p.grad.double().numpy().ravel() for p in model.parameters() if p.grad is not None])
    assert values["gradients/global_norm"] == pytest.approx(np.linalg.norm(flat), rel=1e-6)
    assert values["gradients/context_encoder_max"] <= np.abs(flat).max()


def test_a_model_that_changed_and_what_is_no_model():
    model = with_gradients()
    flow = GradientFlow(model)
    model.more = nn.Linear(1, 1)
    with pytest.raises(ConfigError, match="of which 2 are new"):
        flow.update()
    with pytest.raises(ConfigError, match="expected the model"):
        GradientFlow(list(model.parameters()))
    with pytest.raises(ConfigError, match="depth=0"):
        GradientFlow(model, depth=0)


def test_parameters_on_two_gpus_of_one_rank_are_an_error():
    devices = {"first": torch.device("cuda", 0), "second": torch.device("cuda", 1)}
    slots = [ParameterShard(name, SimpleNamespace(device=device), WHOLE) for name, device in devices.items()]
    with pytest.raises(ConfigError, match="'first' is on cuda:0, 'second' is on cuda:1"):
        one_device(slots)
    assert one_device(slots[1:]) == devices["second"]


def test_replicas_count_once_and_must_agree():
    def body(context, off=0.0):
        model = with_gradients()
        if context.rank == 2:
            model.predictor.weight.grad += off
        flow = GradientFlow(model)
        flow.update()
        return MetricCollection({"flow": flow}, context).compute()

    alone = flow_of(with_gradients())
    for values in run_ranks(3, body):
        assert numbers(values) == numbers(alone)
        assert (values["gradients/predictor"].counts == alone["gradients/predictor"].counts).all()
    for error in try_ranks(3, lambda context: body(context, 0.1)):
        assert isinstance(error, DesyncError)
        assert "on rank 2" in str(error)


def test_a_histogram_of_powers_of_two():
    model = nn.Linear(8, 1, bias=False)
    model.weight.grad = torch.tensor([[0.0, 1.0, 1.5, 2.0, -0.25, -0.3, 1e-3, 0.0]])
    histogram = flow_of(model)["gradients/weight"]
    assert histogram.count == 8
    assert histogram.edges[0] == -0.5
    assert histogram.edges[-1] == 4.0
    assert histogram.minimum == -0.5  # known to a factor of two
    assert histogram.maximum == 2.0
    assert histogram.total == pytest.approx(3.951)
    by_bin = {float(low): int(n) for low, n in zip(histogram.edges, histogram.counts, strict=False) if n}
    assert by_bin == {-0.5: 2, -(2.0**-126): 2, 2.0**-10: 1, 1.0: 2, 2.0: 1}


def test_a_large_mean_costs_no_digits_of_the_std():
    model = nn.ModuleDict({"offset": nn.Linear(300, 400, bias=False), "equal": nn.Linear(300, 400)})
    noise = torch.randn(400, 300, generator=torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.1)
    model["offset"].weight.grad = 1.0 + 1e-4 * noise
    values = numbers(flow_of(model, report="numbers"))
    expected = model["offset"].weight.grad.double().numpy().std(ddof=1)
    assert values["gradients/offset_std"] == pytest.approx(expected, rel=1e-6)
    assert values["gradients/equal_std"] == 0.0
