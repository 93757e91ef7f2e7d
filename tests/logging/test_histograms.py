"""Counting many tensors at once against NumPy, tensor by tensor."""

import numpy as np
import pytest
import torch

from hjepa_dist_metrics.logging import histograms
from hjepa_dist_metrics.logging.histograms import TensorHistograms, count_tensors, signed_log_edges


def expected_counts(values, edges):
    inside = np.clip(values, edges[0], np.nextafter(edges[-1], -np.inf))
    return np.histogram(inside, bins=edges)[0]


@pytest.mark.parametrize("chunk", [None, 1 << 22, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_counts_and_moments_match_numpy(monkeypatch, chunk, dtype):
    """On the host one by one, and in chunks as on a GPU."""
    if chunk is not None:
        monkeypatch.setattr(histograms, "_CHUNK", chunk)
        monkeypatch.setattr(histograms, "_AT_ONCE", ("cpu",))
    generator = torch.Generator().manual_seed(0)
    tensors = [
        (torch.randn(n, generator=generator) * scale).to(dtype)
        for n, scale in ((40, 1.0), (1, 1e-9), (0, 1.0), (33, 1e6), (5, 0.0))
    ]
    edges = signed_log_edges()
    counts, moments = count_tensors(tensors, edges)
    for tensor, row, moment in zip(tensors, counts.numpy(), moments.numpy(), strict=True):
        values = tensor.double().numpy()
        assert row[:-1].tolist() == expected_counts(values, edges).tolist()
        assert row[-1] == 0
        assert moment[2:] == pytest.approx([values.sum(), (values**2).sum()], rel=1e-12)
        if len(values):
            assert moment[:2].tolist() == [values.min(), values.max()]


def test_nonfinite_values_are_counted_apart():
    tensor = torch.tensor([1.0, float("nan"), float("inf"), -float("inf"), 3.0])
    histogram = TensorHistograms({"x": tensor, "all bad": torch.full((2,), float("nan"))}).values()
    assert (histogram["x"].count, histogram["x"].nonfinite) == (2, 3)
    assert (histogram["x"].minimum, histogram["x"].maximum, histogram["x"].total) == (1.0, 3.0, 4.0)
    assert (histogram["all bad"].count, histogram["all bad"].minimum, histogram["all bad"].maximum) == (
        0,
        0,
        0,
    )


def test_what_is_counted_is_what_was_there():
    tensor = torch.ones(3)
    taken = TensorHistograms({"x": tensor})
    tensor.fill_(5.0)
    assert taken.values()["x"].maximum == 1.0


def test_the_edges_rise_and_are_symmetric():
    edges = signed_log_edges()
    assert (np.diff(edges) > 0).all()
    np.testing.assert_array_equal(edges, -edges[::-1])
    assert len(edges) == 242
