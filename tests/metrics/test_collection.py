"""Collections: prefixes, clones, and defaults of time."""

import inspect

import pytest
import torch

from hjepa_dist_metrics import Collapse, DistributedMetric, MetricCollection, WeightedMean
from tests.helpers.contract import EXAMPLES
from tests.helpers.ranks import run_ranks


def test_a_prefix_stands_before_every_tag():
    def body(context):
        metrics = {"loss": WeightedMean("loss"), "accuracy": WeightedMean("accuracy")}
        collection = MetricCollection(metrics, context, prefix="val/")
        collection["loss"].update(1.0 + context.rank)
        collection["accuracy"].update(0.5)
        return collection.compute(), collection.compute(names=["loss"])

    for values, loss in run_ranks(2, body):
        assert values == {"val/loss": 1.5, "val/accuracy": 0.5}
        assert loss == {"val/loss": 1.5}
    collection = MetricCollection({"loss": WeightedMean("loss")}, prefix="val/")
    collection["loss"].update(2.0)
    assert collection.compute_async().result() == {"val/loss": 2.0}


def test_a_clone_goes_its_own_way():
    train = MetricCollection({"collapse": Collapse(3)})
    train["collapse"].update(torch.eye(3))
    val = train.clone(prefix="val/")
    assert list(val.compute()) == [f"val/{tag}" for tag in train.compute()]
    val["collapse"].update(torch.ones(5, 3))
    assert train.compute()["collapse/num_samples"] == 3
    assert val.compute()["val/collapse/num_samples"] == 8


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_every_metric_can_be_cloned(kind):
    example = EXAMPLES[kind]
    metric = example.make()
    example.feed(metric, slice(0, 4))
    clone = metric.clone()
    before = {tag: repr(value) for tag, value in clone.compute().items()}
    assert before == {tag: repr(value) for tag, value in metric.compute().items()}
    metric.reset()
    assert {tag: repr(value) for tag, value in clone.compute().items()} == before


def test_compute_takes_a_context_and_a_time():
    assert list(inspect.signature(DistributedMetric.compute).parameters) == ["self", "context", "timeout"]
    assert WeightedMean("a").compute(timeout=None) == {}
