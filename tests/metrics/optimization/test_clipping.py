import math

import numpy as np
import pytest
import torch
from torch import nn

from hjepa_dist_metrics import ConfigError, GradientClipping
from hjepa_dist_metrics.metrics.optimization.tracked_parameters import optimizer_groups
from tests.helpers.ranks import run_ranks

pytestmark = pytest.mark.accuracy


def model_with_gradients(scale=1.0, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    parameters = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in ((7, 5), (5,), (3, 2, 2))]
    for parameter in parameters:
        parameter.grad = (torch.randn(parameter.shape, generator=generator) * scale).to(dtype)
    return parameters


def numpy_norm(parameters):
    return math.sqrt(
        sum(float((p.grad.double().numpy() ** 2).sum()) for p in parameters if p.grad is not None)
    )


def numbers(metric):
    return {tag: float(value) for tag, value in metric.compute().items()}


@pytest.mark.parametrize("max_norm", [0.5, 1e3])
def test_clips_like_torch_and_reports_norms(max_norm):
    mine, reference = model_with_gradients(), model_with_gradients()
    before = numpy_norm(mine)
    clipping = GradientClipping(mine)
    returned = clipping.clip_(max_norm)
    nn.utils.clip_grad_norm_(reference, max_norm)
    for p, q in zip(mine, reference, strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=0)
    values = numbers(clipping)
    assert float(returned) == pytest.approx(before, rel=1e-6)
    assert values["gradient/global_norm_before_clip"] == pytest.approx(before, rel=1e-6)
    assert values["gradient/global_norm_after_clip"] == pytest.approx(numpy_norm(mine), rel=1e-5)
    assert values["gradient/was_clipped"] == float(before > max_norm)
    assert values["gradient/clipping_ratio"] == pytest.approx(min(1.0, max_norm / before), rel=1e-5)


def test_percentage_over_the_run_and_over_the_window():
    parameters = model_with_gradients()
    clipping = GradientClipping(parameters, window=4)
    norms = [0.1, 2.0, 0.1, 0.1, 0.1, 3.0, 0.1]
    for norm in norms:
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, norm / math.sqrt(35 + 5 + 12))
        clipping.clip_(1.0)
    values = numbers(clipping)
    assert values["gradient/clipping_percentage"] == pytest.approx(100 * np.mean(np.array(norms) > 1.0))
    assert values["gradient/clipping_percentage_window"] == 25.0  # 0.1, 0.1, 3.0, 0.1
    assert values["gradient/was_clipped"] == 0.0
    assert values["gradient/nonfinite_steps"] == 0.0


def test_nonfinite_steps_count_apart():
    parameters = model_with_gradients(0.01)
    clipping = GradientClipping(parameters)
    clipping.clip_(1.0)
    parameters[0].grad[0, 0] = float("inf")
    clipping.clip_(1.0)
    values = numbers(clipping)
    assert values["gradient/nonfinite_steps"] == 1
    assert values["gradient/clipping_percentage"] == 0.0
    assert values["gradient/global_norm_before_clip"] == math.inf


def test_half_precision_norm_is_computed_in_float32():
    # 52 values of 2e4: the norm is 144,222, beyond float16's 65,504
    parameters = model_with_gradients(dtype=torch.float16)
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 2e4)
    norm = GradientClipping(parameters).clip_(math.inf)
    assert norm.dtype == torch.float32
    assert float(norm) == pytest.approx(2e4 * math.sqrt(52), rel=1e-5)


def test_frozen_and_sparse_parameters():
    embedding = nn.Embedding(10, 3, sparse=True)
    frozen = nn.Parameter(torch.ones(4), requires_grad=False)
    embedding(torch.tensor([1, 1, 4])).sum().backward()
    clipping = GradientClipping([*embedding.parameters(), frozen])
    norm = clipping.clip_(1.0)
    # rows 1 and 4 have gradients 2 and 1 in each of 3 columns
    assert float(norm) == pytest.approx(math.sqrt(3 * 4 + 3 * 1), rel=1e-6)
    dense = embedding.weight.grad.to_dense()
    assert float(dense.norm()) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("max_norm", [0.0, -1.0, math.nan])
def test_bad_thresholds(max_norm):
    with pytest.raises(ConfigError, match="max_norm must be positive"):
        GradientClipping(model_with_gradients()).clip_(max_norm)


def test_no_gradients_and_no_parameters():
    with pytest.raises(ConfigError, match="no parameter has a gradient"):
        GradientClipping([nn.Parameter(torch.ones(2))]).clip_(1.0)
    with pytest.raises(ConfigError, match="there are no parameters"):
        GradientClipping(iter(()))


def test_nothing_before_the_first_step():
    assert GradientClipping(model_with_gradients()).compute() == {}


def two_groups():
    a, b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(4))
    a.grad, b.grad = torch.full_like(a, 2.0), torch.full_like(b, 1.0)
    return a, b


def test_parameter_groups_of_one_or_more_optimizers_share_one_coefficient():
    a, b = two_groups()
    c = nn.Parameter(torch.zeros(1))
    c.grad = torch.tensor([3.0])
    optimizers = [
        torch.optim.SGD([{"params": [a], "name": "decay"}, {"params": [b]}], lr=1.0),
        torch.optim.AdamW([{"params": [c], "name": "decay"}], lr=1.0),
    ]
    groups = optimizer_groups(optimizers)
    assert {name: [id(p) for p in members] for name, members in groups.items()} == {
        "decay": [id(a)],
        "group1": [id(b)],
        "decay2": [id(c)],
    }
    clipping = GradientClipping([a, b, c], groups=groups)
    clipping.clip_(2.5)
    values = numbers(clipping)
    # squares 12, 4, 9: the norm is 5, the coefficient one half
    assert values["gradient/global_norm_before_clip"] == pytest.approx(5.0)
    for name, before in {"decay": math.sqrt(12), "group1": 2.0, "decay2": 3.0}.items():
        assert values[f"gradient/{name}/global_norm_before_clip"] == pytest.approx(before, rel=1e-6)
        assert values[f"gradient/{name}/global_norm_after_clip"] == pytest.approx(before / 2, rel=1e-6)


def test_an_optimizer_is_a_source_of_parameters():
    a, b = two_groups()
    optimizer = torch.optim.SGD([a, b], lr=1.0)
    assert float(GradientClipping(optimizer).clip_(1.0)) == pytest.approx(4.0)


def test_a_step_with_a_nonfinite_norm_is_passed_over_where_asked():
    a, b = two_groups()
    optimizer = torch.optim.Adam([a, b], lr=1.0)
    clipping = GradientClipping([a, b], skip_nonfinite=True)
    a.grad[1] = math.nan
    clipping.clip_(1.0)
    optimizer.step()
    assert a.grad is None
    assert not a.any()
    assert not b.any()
    a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
    clipping.clip_(1.0)
    optimizer.step()
    assert a.all()
    values = numbers(clipping)
    assert values["gradient/skipped_steps"] == values["gradient/nonfinite_steps"] == 1


def test_every_rank_passes_over_a_step_that_is_nonfinite_on_one():
    def body(context):
        a, b = two_groups()
        if context.rank == 1:
            b.grad[0] = math.inf
        GradientClipping([a, b], skip_nonfinite=True, context=context).clip_(1.0)
        return a.grad is None and b.grad is None

    assert run_ranks(3, body) == [True, True, True]


def test_parameters_that_come_later_are_an_error():
    model = nn.Linear(2, 2)
    clipping = GradientClipping(model)
    model(torch.ones(1, 2)).sum().backward()
    clipping.clip_(1.0)
    model.extra = nn.Parameter(torch.ones(1))
    with pytest.raises(ConfigError, match="there were 2, now there are 3, of which 1 are new"):
        clipping.clip_(1.0)
    optimizer = torch.optim.SGD(list(model.parameters())[:1], lr=0.1)
    clipping = GradientClipping(optimizer)
    optimizer.add_param_group({"params": [model.extra]})
    with pytest.raises(ConfigError, match="parameters changed"):
        clipping.clip_(1.0)


def test_parameters_on_two_kinds_of_device_are_an_error():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    with pytest.raises(ConfigError, match=r"'0.weight' is on cpu, '1.weight' is on meta"):
        GradientClipping(model)


def test_a_window_without_steps_and_parameters_that_are_none():
    with pytest.raises(ConfigError, match="window=0"):
        GradientClipping(model_with_gradients(), window=0)
    with pytest.raises(ConfigError, match="expected parameters, got int"):
        GradientClipping([3])


def test_the_norm_of_many_values_is_exact():
    # float32 norms of large tensors drift by 1e-4 and more; blocks do not
    parameter = nn.Parameter(torch.zeros(3_000_001))
    parameter.grad = torch.randn(3_000_001, generator=torch.Generator().manual_seed(0)) * 1e-3
    parameters = [parameter, *model_with_gradients(1e-3)]
    expected = numpy_norm(parameters)
    assert float(GradientClipping(parameters).clip_(math.inf)) == pytest.approx(expected, rel=2e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_clip_like_torch(dtype):
    mine, other = model_with_gradients(3.0, dtype=dtype), model_with_gradients(3.0, dtype=dtype)
    GradientClipping(mine).clip_(1.0)
    norm = numpy_norm(other)
    for p, q in zip(mine, other, strict=True):
        expected = q.grad.double() / (norm + 1e-6)
        torch.testing.assert_close(
            p.grad.double(), expected, rtol=8e-3 if dtype == torch.bfloat16 else 1e-9, atol=0
        )


def test_a_gradient_scalers_overflow_counts_apart_and_its_skipped_step_changes_nothing():
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    clipping = GradientClipping(model)
    before = [p.detach().clone() for p in model.parameters()]
    for value in (math.inf, 1.0):
        optimizer.zero_grad()
        scaler.scale(model(torch.full((1, 3), value)).sum()).backward()
        scaler.unscale_(optimizer)
        norm = clipping.clip_(0.5)
        scaler.step(optimizer)
        scaler.update()
        moved = [not torch.equal(p.detach(), q) for p, q in zip(model.parameters(), before, strict=True)]
        assert any(moved) == math.isfinite(value)
    # the gradient of the weights is the input, 1, of the bias 1: norm 2, unscaled
    assert float(norm) == pytest.approx(2.0)
    values = numbers(clipping)
    assert values["gradient/nonfinite_steps"] == 1
    assert values["gradient/clipping_percentage"] == 100.0


@pytest.mark.parametrize("saved", [0, 2, 6, 9])
def test_the_window_goes_on_where_the_saved_one_ended(saved):
    norms = [10.0, 0.1, 0.1, 10.0, 10.0, 0.1, math.nan, 0.1, 10.0, 0.1, 10.0]
    weight = torch.nn.Parameter(torch.zeros(1))

    def clip(metric, norm):
        weight.grad = torch.tensor([norm])
        metric.clip_(1.0)

    first, second = GradientClipping(weight, window=4), GradientClipping(weight, window=4)
    for norm in norms[:saved]:
        clip(first, norm)
    second.load_state_dict(first.state_dict())
    for at, norm in enumerate(norms[saved:], start=saved + 1):
        clip(second, norm)
        window = [x > 1.0 for x in norms[max(at - 4, 0) : at] if not math.isnan(x)]
        found = float(second.compute()["gradient/clipping_percentage_window"])
        assert found == pytest.approx(100 * sum(window) / len(window))


@pytest.mark.parametrize("max_norm", [0.5, 1e3, math.inf])
def test_trusts_a_clipping_by_the_formula(max_norm):
    parameters, same = model_with_gradients(), model_with_gradients()
    trusted, read_back = GradientClipping(parameters), GradientClipping(same)
    with trusted.measuring(max_norm):
        nn.utils.clip_grad_norm_(parameters, max_norm)
    with read_back.measuring():
        nn.utils.clip_grad_norm_(same, max_norm)
    assert numbers(trusted) == pytest.approx(numbers(read_back), rel=1e-6)


@pytest.mark.parametrize("how", ["norm", "value", "not at all"])
def test_measures_a_clipping_that_is_not_its_own(how):
    parameters = model_with_gradients()
    groups = {"weights": parameters[:1], "others": parameters[1:]}
    clipping = GradientClipping(parameters, groups=groups)
    before = [numpy_norm(members) for members in (parameters, *groups.values())]
    with clipping.measuring():
        if how == "norm":
            nn.utils.clip_grad_norm_(parameters, 0.5)
        elif how == "value":
            nn.utils.clip_grad_value_(parameters, 0.1)
    after = [numpy_norm(members) for members in (parameters, *groups.values())]
    values = numbers(clipping)
    for name, norms in zip(("", "weights/", "others/"), zip(before, after, strict=True), strict=True):
        assert values[f"gradient/{name}global_norm_before_clip"] == pytest.approx(norms[0], rel=1e-6)
        assert values[f"gradient/{name}global_norm_after_clip"] == pytest.approx(norms[1], rel=1e-6)
    assert values["gradient/was_clipped"] == float(how != "not at all")
    assert values["gradient/clipping_percentage"] == 100.0 * (how != "not at all")


def test_measures_gradients_of_zero():
    parameters = model_with_gradients(scale=0.0)
    clipping = GradientClipping(parameters)
    with clipping.measuring():
        pass
    values = numbers(clipping)
    assert (values["gradient/global_norm_before_clip"], values["gradient/clipping_ratio"]) == (0.0, 1.0)
