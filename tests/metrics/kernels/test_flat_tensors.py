"""Small tensors joined and reduced stretch by stretch: what NumPy gives of each alone, inputs untouched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from hjepa_dist_metrics.metrics.kernels.flat_tensors import SMALL, chunks, flatten, joined_sums, split_by_size
from hjepa_dist_metrics.metrics.kernels.moments import moments
from hjepa_dist_metrics.metrics.kernels.norms import tensor_norms

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def drawn(sizes, dtypes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, generator=generator, dtype=torch.float64) * 3 + 1).to(dtypes[i % len(dtypes)])
        for i, size in enumerate(sizes)
    ]


@given(sizes=SIZES, dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=3))
def test_sums_are_numpys_and_inputs_stay(sizes, dtypes):
    tensors = drawn(sizes, dtypes)
    before = [tensor.clone() for tensor in tensors]
    sums, squares = joined_sums(tensors)
    plain = [tensor.to(torch.float64).numpy() for tensor in tensors]
    np.testing.assert_allclose(sums, [x.sum() for x in plain], rtol=1e-12)
    np.testing.assert_allclose(squares, [x @ x for x in plain], rtol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_flattened_is_a_copy(count):
    tensors = [torch.ones(2, 2) for _ in range(count)]
    flatten(tensors).zero_()
    assert all(bool(tensor.all()) for tensor in tensors)


def test_small_large_and_empty_tensors_together():
    tensors = drawn([3, SMALL + 1, 1, SMALL, 2 * SMALL], [torch.float32])
    tensors.insert(2, torch.zeros(0))
    assert split_by_size(tensors) == ([0, 3, 4], [1, 5])
    plain = [tensor.to(torch.float64).numpy() for tensor in tensors]
    sums, spreads = moments(tensors, torch.device("cpu"))
    np.testing.assert_allclose(sums, [x.sum() for x in plain], rtol=1e-5)
    about = [np.linalg.norm(x - x.mean()) if len(x) else 0.0 for x in plain]
    np.testing.assert_allclose(spreads, about, rtol=1e-6)
    norms = tensor_norms(tensors, torch.device("cpu"))
    np.testing.assert_allclose(norms, [np.linalg.norm(x) for x in plain], rtol=1e-6)


def test_infinities_give_what_adding_them_gives_without_a_warning():
    tensors = [torch.tensor([float("inf"), -float("inf")]), torch.tensor([float("inf"), 1.0]), torch.ones(1)]
    sums, squares = joined_sums(tensors)
    assert sums[0].isnan()
    assert sums[1:].tolist() == [float("inf"), 1.0]
    assert squares.tolist() == [float("inf"), float("inf"), 1.0]


@given(sizes=st.lists(st.integers(0, 9), max_size=20), most=st.integers(1, 12))
def test_chunks_hold_everything_once_within_the_bound(sizes, most):
    cut = list(chunks(sizes, most))
    assert [i for start, stop in cut for i in range(start, stop)] == list(range(len(sizes)))
    for start, stop in cut:
        held = sizes[start:stop]
        assert sum(held) <= most or sum(size > 0 for size in held) == 1
