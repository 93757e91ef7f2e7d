import math

import numpy as np
import pytest
import torch
from torch import nn

from hjepa_dist_metrics import ConfigError, GradientClipping


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
    with pytest.raises(ConfigError, match="no parameters to clip"):
        GradientClipping(iter(()))


def test_nothing_before_the_first_step():
    assert GradientClipping(model_with_gradients()).compute() == {}
