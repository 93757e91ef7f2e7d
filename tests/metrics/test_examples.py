"""Every public metric shows an example, and it is true."""

import doctest
import inspect

import pytest
import torch
from torch import nn

from hjepa_dist_metrics import DistributedMetric, metrics

CLASSES = sorted(
    (
        kind
        for kind in vars(metrics).values()
        if inspect.isclass(kind) and issubclass(kind, DistributedMetric) and kind is not DistributedMetric
    ),
    key=lambda kind: kind.__name__,
)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_the_example_of_a_metric_is_true(kind):
    names = {"torch": torch, "nn": nn, kind.__name__: kind}
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(kind), names, kind.__name__, None, None)
    torch.manual_seed(0)
    said = []
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(example, out=said.append)
    assert runner.summarize(verbose=False).attempted > 1
    assert said == []
