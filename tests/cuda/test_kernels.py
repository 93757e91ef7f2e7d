"""The device's kernels agree with the host's, in each type of gradients and at sizes of real models."""

from __future__ import annotations

import pytest
import torch

from hjepa_dist_metrics import Memory
from hjepa_dist_metrics.metrics.kernels.elements import read_elements
from hjepa_dist_metrics.metrics.kernels.norms import joint_norm, scale_, tensor_norms
from hjepa_dist_metrics.states import Covariance
from hjepa_dist_metrics.states.second_moments.sliced_gram import sliced_gram
from tests.cuda.device import device, rehearsed, there

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def gradients(dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = [(300_001,), (5,), (7, 9), (1, 1), (2048, 512)]
    drawn = [torch.randn(shape, generator=generator) * 1e-3 for shape in shapes]
    drawn[1].zero_()
    return [tensor.to(dtype) for tensor in drawn]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_element_statistics(dtype):
    tensors = gradients(dtype)
    columns = [0, 1, 0, 2, 2]
    host = read_elements(tensors, columns, 3, torch.device("cpu"), counting=True)
    found = read_elements(there(tensors), columns, 3, device(), counting=True)
    torch.testing.assert_close(found.each.sums.cpu(), host.each.sums, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(found.each.spread.cpu(), host.each.spread, rtol=1e-5, atol=1e-12)
    assert found.each.largest.tolist() == host.each.largest.tolist()
    assert found.each.smallest.tolist() == host.each.smallest.tolist()
    assert torch.equal(found.counts.cpu(), host.counts)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_and_scaling(dtype):
    tensors = gradients(dtype)
    expected = torch.stack([tensor.double().norm() for tensor in tensors])
    own = there([tensor.clone() for tensor in tensors])
    torch.testing.assert_close(tensor_norms(own, device()).cpu(), expected, rtol=1e-6, atol=0)
    total = expected.square().sum().sqrt()
    torch.testing.assert_close(joint_norm(own, device()).cpu(), total, rtol=1e-6, atol=0)
    scale_(own, torch.tensor(0.5, dtype=torch.float64, device=device()))
    for scaled, tensor in zip(own, tensors, strict=True):
        assert torch.equal(scaled.cpu(), (tensor * 0.5))


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e18])
def test_covariances(scale):
    rows = (torch.randn(2500, 96, generator=torch.Generator().manual_seed(1)) + 3.0) * scale
    wide = rows.double()
    state = Covariance(96)
    for part in there(rows).split(700):
        state.update(part)
    expected = torch.cov(wide.T)
    torch.testing.assert_close(state.matrix.cpu(), expected, rtol=1e-9, atol=1e-9 * float(expected.max()))


def test_products_of_digits_are_exact_on_the_device_with_and_without_tf32():
    rows = torch.randn(1500, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    before = torch.get_float32_matmul_precision()
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        try:
            found = sliced_gram(there(rows))
        finally:
            torch.set_float32_matmul_precision(before)
        torch.testing.assert_close(found.cpu(), rows.T @ rows, rtol=1e-10, atol=1e-9)


@pytest.mark.skipif(rehearsed(), reason="a rehearsal on the host has no device memory to report")
def test_memory_of_the_device():
    held = torch.zeros(1 << 22, device=device())
    memory = Memory()
    memory.update()
    values = {tag: float(value) for tag, value in memory.compute().items()}
    assert values["system/gpu0_memory_allocated_gb"] >= held.numel() * 4 / 1e9
    assert values["performance/gpu_memory_peak_gb"] >= values["performance/gpu_memory_allocated_gb"]
