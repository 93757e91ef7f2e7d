"""Keys of tensors against a comparison of their bytes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from hjepa_dist_metrics.metrics.kernels.checksum import Checksums

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]


def tensors(dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = [(), (3,), (0,), (5, 7), (130, 129), (40_000,), (64, 3, 11, 11), (1 << 16,)]
    return [(torch.randn(shape, generator=generator) * 50).to(dtype) for shape in shapes]


def keys(values):
    return Checksums(values)(values).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_bits_have_equal_keys_wherever_they_lie(dtype):
    values = tensors(dtype)
    moved = []
    for value in values:  # at an odd place of a larger memory, and with the dimensions in another order
        room = torch.zeros(value.numel() + 3, dtype=dtype)
        room[3:] = value.reshape(-1)
        place = room[3:].view(value.shape)
        moved.append(place.transpose(0, 1).contiguous().transpose(0, 1) if value.dim() > 1 else place)
    assert keys(moved) == keys(values)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_one_bit_changes_the_key_of_its_tensor_alone(dtype, data):
    values = tensors(dtype)
    index = data.draw(st.sampled_from([i for i, value in enumerate(values) if value.numel()]))
    changed = [value.clone() for value in values]
    flat = torch.view_as_real(changed[index]) if dtype.is_complex else changed[index]
    flat = flat.reshape(-1) if flat.dim() == 0 else flat.view(-1)
    place = data.draw(st.integers(0, flat.numel() - 1))
    if dtype == torch.bool:
        flat[place] = ~flat[place]
    else:
        sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        flat.view(sizes[flat.element_size()])[place] ^= 1
    before, after = keys(values), keys(changed)
    different = [i for i, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
    assert different == [index]
    assert not np.array_equal(
        values[index].view(-1).view(torch.uint8), changed[index].view(-1).view(torch.uint8)
    )


def test_the_order_of_elements_and_of_rows_counts():
    small, large = torch.arange(10.0), torch.arange(1 << 15, dtype=torch.float64)
    swapped = large.clone()
    swapped[:256], swapped[256:512] = large[256:512], large[:256]
    assert keys([small]) != keys([small.flip(0)])
    assert keys([large]) != keys([swapped])


def test_many_elements_that_drift_by_one_bit():
    """As replicas do whose gradients differ in the last place."""
    value = torch.randn(1 << 18, generator=torch.Generator().manual_seed(0))
    found = set()
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        drift = torch.randint(-1, 2, value.shape, generator=generator, dtype=torch.int32)
        found.add(keys([(value.view(torch.int32) + drift).view(torch.float32)])[0])
    assert len(found | {keys([value])[0]}) == 51


def test_no_tensors():
    assert keys([]) == []
    assert len(keys([torch.zeros(0)])) == 1
