"""Every registered metric at any scale: what is invariant stays, what scales scales, nothing finite is lost.

The scales are powers of two, at which data keeps all its digits: what a number must be follows from what it
is of the same data at its own scale, in float64.
"""

import math
import re
from dataclasses import replace

import pytest
import torch

from hjepa_dist_metrics import metrics
from hjepa_dist_metrics.states.scales import times_power_of_two
from tests.helpers.contract import EXAMPLES
from tests.helpers.scales import SCALINGS, Size, numbers, read_at

WITHOUT = {
    metrics.BatchContent,
    metrics.GradientCosines,  # of losses with a graph: its own test scales them
    metrics.ExpertLoad,
    metrics.LoaderEnds,
    metrics.LearningRate,
    metrics.Masking,
    metrics.Memory,
    metrics.MemoryGrowth,
    metrics.OptimizerCoverage,
    metrics.ReplicaAgreement,
    metrics.Stragglers,
    metrics.Throughput,
    metrics.TotalSamples,
}
PIECES = [slice(0, 7), slice(7, 19)]
# 2^100 is 1e30, 2^664 is 1e200.
SIZES = {
    "float32 x 1e30": Size(100, torch.float32),
    "float32 x 1e-30": Size(-100, torch.float32),
    "float64 x 1e200": Size(664, torch.float64),
    "float64 x 1e-200": Size(-664, torch.float64),
    "bfloat16 near its largest": Size(120, torch.bfloat16),
    "bfloat16 near its smallest": Size(-122, torch.bfloat16),
    "float16 near its largest": Size(9, torch.float16),
    "float16 near its smallest": Size(-12, torch.float16),
}
HALVES = (torch.bfloat16, torch.float16)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}


def test_every_registered_metric_has_a_scaling():
    assert set(SCALINGS) | WITHOUT == set(EXAMPLES)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.__name__) for kind in SCALINGS])
def test_numbers_follow_the_scale(kind, name):
    size, scaling, example = SIZES[name], SCALINGS[kind], EXAMPLES[kind]
    if kind is metrics.Updates and size.dtype in HALVES:
        size = replace(size, dtype=torch.float32)  # the optimizer itself rounds what it adds
    got = numbers(read_at(example, scaling, size, PIECES))
    plain = numbers(read_at(example, scaling, Size(size.exponent, size.dtype, restored=True), PIECES))
    assert got.keys() == plain.keys()
    tolerance = TOLERANCE[size.dtype]
    for tag, value in plain.items():
        assert math.isfinite(got[tag]), tag
        if re.search(scaling.free, tag):
            continue
        degree = scaling.degree(tag)
        wanted = times_power_of_two(value, degree * size.exponent)
        least = times_power_of_two(tolerance, degree * size.exponent)
        assert got[tag] == pytest.approx(wanted, rel=tolerance, abs=least), tag
