"""Every metric's update on the device, in each type of input, gives what float64 gives on the host."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hjepa_dist_metrics.metrics import DistributedMetric
from hjepa_dist_metrics.values import Histogram
from tests.cuda.device import device, rehearsed, there
from tests.helpers.contract import EXAMPLES, Example, assert_same, compute

PIECES = [slice(0, 40), slice(40, 41), slice(41, 41), slice(41, 100)]
UPDATES = ("update", "clip_", "before", "remember", "update_steps")
# Inputs are the same numbers on both devices; sums over them round.
TOLERANCE = 1e-5
TYPES = [torch.bfloat16] if rehearsed() else [torch.float32, torch.bfloat16, torch.float16]


def fed(example: Example, where: torch.device, given: torch.dtype, wide: torch.dtype) -> DistributedMetric:
    """Feed a metric on a device; its inputs are rounded to `given` and handed over as `wide`."""
    with torch.device(where):
        metric = example.make()
    for name in UPDATES:
        update = getattr(metric, name, None)
        if update is not None:
            setattr(metric, name, _rounding(update, where, given, wide))
    for piece in PIECES:
        example.feed(metric, piece)
    return metric


def _rounding(update, where, given, wide):
    def called(*args, **kwargs):
        args, kwargs = there(there((args, kwargs), given, where), wide, where)
        return update(*args, **kwargs)

    return called


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_updates_on_the_device(kind, dtype):
    example = EXAMPLES[kind]
    expected = compute(fed(example, torch.device("cpu"), dtype, torch.float64))
    found = compute(fed(example, device(), dtype, dtype))
    require_near_histograms(found, expected)
    assert_same(found, expected, replace(example, tolerance=max(example.tolerance, TOLERANCE)))


def require_near_histograms(found, expected):
    """Compare counts, of which one in 50 may lie on an edge and be rounded across it; then leave them out."""
    for tag in [tag for tag, value in expected.items() if isinstance(value, Histogram)]:
        one, other = found.pop(tag), expected.pop(tag)
        assert one.edges.tolist() == other.edges.tolist(), tag
        assert one.counts.sum() == other.counts.sum(), tag
        assert abs(one.counts - other.counts).sum() <= 2 * (1 + other.counts.sum() // 50), tag
