"""The kernels that read every element, the host's and a device's, against NumPy."""

import math

import numpy as np
import pytest
import torch

from hjepa_dist_metrics.metrics.kernels import elements_device, elements_host
from hjepa_dist_metrics.metrics.kernels.elements import SUMS, Elements, read_elements
from hjepa_dist_metrics.metrics.kernels.moments import standard_deviation
from hjepa_dist_metrics.metrics.kernels.norms import BLOCK

pytestmark = pytest.mark.accuracy

CPU = torch.device("cpu")


def device(tensors, columns, size, counting):
    counts = elements_device.counts(tensors, columns, size) if counting else None
    return Elements(elements_device.stats(tensors), counts)


@pytest.fixture(params=["host", "device"])
def kernel(request):
    return {"host": elements_host.read, "device": device}[request.param]


def awkward():
    generator = torch.Generator().manual_seed(0)
    big = torch.randn(3 * BLOCK + 17, generator=generator) * 1e-4 + 1e-5
    big[5], big[BLOCK + 1], big[BLOCK + 2] = 0.0, 0.0, -0.0
    return [
        big,
        torch.randn(7, 5, generator=generator).T,
        torch.zeros(0),
        torch.tensor([0.0, -0.0, 0.0, 0.0]),
        torch.tensor(2.5),
        torch.full((3,), -3.0),
        torch.randn(8, generator=generator)[::2],
    ]


COLUMNS = [0, 1, 1, 0, 2, 2, 1]


def exponents(x):
    """Count by sign and exponent with frexp: x = m 2^e, 1/2 <= m < 1."""
    counts = np.zeros(512, dtype=np.int64)
    finite = np.isfinite(x)
    _, e = np.frexp(np.abs(x[finite]))
    code = np.where(np.abs(x[finite]) < 2.0**-126, 0, e + 126) + 256 * np.signbit(x[finite])
    counts += np.bincount(code, minlength=512)
    counts[255] += (x == np.inf).sum()
    counts[511] += (x == -np.inf).sum()
    return counts


def test_against_numpy(kernel):
    tensors = awkward()
    read = kernel(tensors, COLUMNS, 4, True)
    found = read.each
    for i, tensor in enumerate(tensors):
        x = tensor.double().numpy().ravel()
        absolute = np.abs(x)
        expected = [len(x), absolute.sum(), x.sum(), (x == 0).sum(), 0]
        # kernels of a GPU add up in a tree; on a CPU, in a row
        tolerance = 1e-4 if kernel is device else 1e-6
        np.testing.assert_allclose(
            found.sums[:, i], expected, rtol=tolerance, atol=1e-12, err_msg=f"tensor {i}"
        )
        about = np.sqrt(((x - x.mean()) ** 2).sum()) if len(x) else 0.0
        assert found.spread[i] == pytest.approx(about, rel=1e-6, abs=1e-12)
        assert found.largest[i] == absolute.max(initial=-math.inf)
        assert found.smallest[i] == absolute.min(initial=math.inf)
    grouped = found.by_column(COLUMNS, 4)
    assert grouped.sums[0].tolist() == [3 * BLOCK + 21, 39, 4, 0]
    assert grouped.smallest.tolist()[2:] == [2.5, math.inf]
    for column in range(4):
        members = [t.numpy().ravel() for t, c in zip(tensors, COLUMNS, strict=True) if c == column]
        expected = exponents(np.concatenate(members)) if members else np.zeros(512, dtype=np.int64)
        assert (read.counts[column].numpy() == expected).all(), column


@pytest.mark.parametrize("spread", [1e-2, 1e-4, 3e-6, 0.0])
def test_a_large_mean_costs_no_digits_of_the_variance(kernel, spread):
    generator = torch.Generator().manual_seed(4)
    tensors = [
        1.0 + spread * torch.randn(2 * BLOCK + 5, generator=generator),
        -0.1 + 0.1 * spread * torch.randn(300, generator=generator),
        torch.full((BLOCK + 1,), 0.1),
        torch.tensor([0.3]),
    ]
    each = kernel(tensors, [0] * 4, 1, False).each
    for i, tensor in enumerate(tensors):
        count, _, total, _, _ = each.sums[:, i].tolist()
        x = tensor.double().numpy()
        expected = x.std(ddof=1) if len(x) > 1 and i != 2 else 0.0  # NumPy's own mean of 0.1 is rounded
        found = standard_deviation(count, total, float(each.spread[i]))
        assert found == pytest.approx(expected, rel=1e-5)
        assert total == pytest.approx(x.sum(), rel=1e-7)


def test_the_kernels_agree_on_a_mean_that_nearly_outweighs():
    """Around the bound one takes float32 sums and another float64: the variance is the same."""
    generator = torch.Generator().manual_seed(5)
    x = torch.cat([torch.randn(BLOCK, generator=generator) + mean for mean in (3.8, 3.87, 3.9, 10.0)])
    for kernel in (elements_host.read, device):
        each = kernel([x], [0], 1, False).each
        count, _, total, _, _ = each.sums[:, 0].tolist()
        found = standard_deviation(count, total, float(each.spread[0]))
        assert found == pytest.approx(x.double().numpy().std(ddof=1), rel=1e-5)


def test_what_is_not_finite_is_counted(kernel):
    tensors = awkward()
    tensors[0][[3, BLOCK + 9, BLOCK + 10]] = torch.tensor([math.nan, math.inf, -math.inf])
    tensors[4] = torch.tensor([math.inf, 1.0])
    read = kernel(tensors, COLUMNS, 4, True)
    found = read.each
    assert found.sums[SUMS.index("nonfinite")].tolist() == [3, 0, 0, 0, 1, 0, 0]
    assert found.sums[SUMS.index("zeros"), 0] == 3
    assert math.isnan(found.sums[1, 0])
    assert math.isfinite(found.sums[1, 1])
    assert math.isnan(found.largest[0])
    assert math.isnan(found.smallest[0])
    assert (found.largest[4], found.smallest[4]) == (math.inf, 1.0)
    assert read.counts[0, 255] + read.counts[0, 511] == 3
    assert (read.counts[2, 255], read.counts[2, 511]) == (1, 0)


def test_the_ends_of_float32(kernel):
    x = torch.tensor([1e-40, -1e-40, 2.0**-126, 3.4e38, -3.4e38])
    read = kernel([x], [0], 1, True)
    assert read.each.sums[SUMS.index("zeros"), 0] == 0
    assert read.each.smallest[0] == float(x[0])
    assert read.each.largest[0] == float(x[3])
    codes = {0: 1, 256: 1, 1: 1, 254: 1, 510: 1}
    assert {i: int(n) for i, n in enumerate(read.counts[0]) if n} == codes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(kernel, dtype):
    x = (torch.randn(BLOCK + 3, generator=torch.Generator().manual_seed(0))).to(dtype)
    read = kernel([x], [0], 1, True)
    wide = x.double().numpy()
    assert float(read.each.spread[0]) == pytest.approx(np.linalg.norm(wide - wide.mean()), rel=1e-5)
    assert read.each.largest[0] == np.abs(wide).max()
    assert (read.counts[0].numpy() == exponents(x.float().numpy())).all()


def test_sums_over_many_elements_are_exact():
    x = torch.randn(10_000_019, generator=torch.Generator().manual_seed(1)) * 1e-3
    found = read_elements([x], [0], 1, CPU).each
    wide = x.double().numpy()
    assert float(found.sums[1, 0]) == pytest.approx(np.abs(wide).sum(), rel=1e-6)
    assert float(found.spread[0]) == pytest.approx(np.linalg.norm(wide), rel=1e-6)


def test_no_tensors():
    read = read_elements([], [], 3, CPU, counting=True)
    assert read.each.sums.shape == (5, 0)
    assert read.counts.shape == (3, 512)
    assert read.counts.sum() == 0
