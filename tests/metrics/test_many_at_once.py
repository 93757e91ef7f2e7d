"""Which states a collection syncs, and formulas that run over many metrics at once."""

from __future__ import annotations

import pytest
import torch

from hjepa_dist_metrics import ConfigError, DistributedMetric, MetricCollection, WeightedMean
from hjepa_dist_metrics.states import Max, Mean, Moments, Sum
from tests.helpers.ranks import run_ranks
from tests.sync.test_counts import Probe


def means(count: int) -> dict[str, DistributedMetric]:
    made = {f"m{i}": WeightedMean(f"m{i}") for i in range(count)}
    for i, mean in enumerate(made.values()):
        mean.update(float(i), 2)
    return dict(made)


class Scaled(WeightedMean):
    """Has a formula of its own, which the parent's way of computing many must not replace."""

    def compute_from(self, states):
        return {f"{tag}_x10": 10 * value for tag, value in super().compute_from(states).items()}


class Extended(WeightedMean):
    """Keeps one more state, and the parent's formula."""

    def __init__(self, tag: str) -> None:
        super().__init__(tag)
        self.add_state("largest", Max())


def test_a_metric_that_gets_one_more_state_is_synced_with_it():
    metrics = means(3)
    collection = MetricCollection(metrics)
    collection.compute()
    metrics["m1"].add_state("more", Sum())
    assert set(collection.compute(lambda _, merged: merged["m1"])) == {"mean", "more"}


class Counting(DistributedMetric):
    """Moves what it counted into its state when it is asked for its states."""

    def __init__(self) -> None:
        self.add_state("seen", Sum())
        self._new = 0

    @property
    def states(self):
        self.seen.update(self._new)
        self._new = 0
        return self._states

    def update(self) -> None:
        self._new += 1

    def compute_from(self, states):
        return {"seen": states["seen"].value}


class More(Counting):
    """Inherits the property."""


@pytest.mark.parametrize("kind", [Counting, More])
def test_a_metric_that_makes_its_states_when_asked_is_asked_at_every_sync(kind):
    metrics = {"count": kind(), **means(2)}
    collection = MetricCollection(metrics)
    for expected in (1.0, 2.0, 3.0):
        metrics["count"].update()
        assert collection.compute()["seen"] == expected


def test_metrics_that_change_between_syncs_are_synced_as_they_are():
    def body(context):
        collection = MetricCollection(means(3), context=context)
        seen = [{tag: v.value for tag, v in collection.compute().items()}]
        collection["m1"].reset()
        seen.append({tag: v.value for tag, v in collection.compute().items()})
        collection["m1"].update(7.0)
        collection.add("late", WeightedMean("late"))
        collection["late"].update(float(context.rank), 1)
        seen.append({tag: v.value for tag, v in collection.compute().items()})
        return seen

    expected = [{"m0": 0.0, "m1": 1.0, "m2": 2.0}, {"m0": 0.0, "m2": 2.0}]
    expected.append({"m0": 0.0, "m1": 7.0, "m2": 2.0, "late": 0.5})
    assert run_ranks(2, body) == [expected] * 2


def test_many_at_once_give_what_each_gives_alone():
    metrics = means(4) | {"empty": WeightedMean("empty"), "nan": WeightedMean("nan")}
    metrics["nan"].update(float("nan"), 1)
    together = MetricCollection(metrics).compute()
    alone = {tag: value for metric in metrics.values() for tag, value in metric.compute().items()}
    assert list(together) == list(alone) == ["m0", "m1", "m2", "m3", "nan"]
    assert [repr(v) for v in together.values()] == [repr(v) for v in alone.values()]


def test_values_come_in_the_order_of_the_metrics():
    mixed = {"s": Scaled("s"), "a": WeightedMean("a"), "e": Extended("e"), "b": WeightedMean("b")}
    for metric in mixed.values():
        metric.update(2.0, 3)
    values = MetricCollection(mixed).compute()
    assert {tag: value.value for tag, value in values.items()} == {
        "s_x10": 20.0,
        "a": 2.0,
        "e": 2.0,
        "b": 2.0,
    }
    assert list(values) == ["s_x10", "a", "e", "b"]


def test_a_state_of_another_kind_under_the_same_name_is_computed_one_by_one():
    class Odd(WeightedMean):
        def __init__(self, tag: str) -> None:
            self.tag = tag
            self.add_state("mean", Mean() if tag == "single" else Sum(shape=(2,)))

        def update(self, value: float, count: float = 1) -> None:
            self.mean.update(value)

        @classmethod
        def compute_many(cls, metrics, merged):
            assert merged.columns(list(metrics), "mean") is None
            assert merged.columns(list(metrics), "absent") is None
            return super(WeightedMean, cls).compute_many({}, merged)

    assert MetricCollection({"a": Odd("single"), "b": Odd("wide")}).compute() == {}


@pytest.mark.parametrize("other", [WeightedMean, Scaled])
def test_two_metrics_that_write_one_tag_are_named(other):
    metrics = {"one": other("t"), "more": WeightedMean("u"), "two": other("t")}
    for metric in metrics.values():
        metric.update(1.0)
    with pytest.raises(
        ConfigError, match=r"metrics 'one' and 'two' both write 't(_x10)?'.* another (name|tag)"
    ):
        MetricCollection(metrics).compute()


class Wrong(DistributedMetric):
    def __init__(self, value):
        self.add_state("seen", Sum())
        self.value = value

    def update(self):
        self.seen.update(1.0)

    def compute_from(self, states):
        return {"good": 1.0, "text/wrong": self.value}


@pytest.mark.parametrize(
    ("value", "got"),
    [(torch.ones(3), r"torch.float32 \[3\]"), ([1.0], "list"), (None, "NoneType"), ("x", "'x'")],
)
@pytest.mark.parametrize("alone", [True, False])
def test_a_value_that_is_none_names_its_metric_and_tag(value, got, alone):
    metric = Wrong(value)
    metric.update()
    with pytest.raises(ConfigError, match=rf"Wrong returns 'text/wrong'.* got a?.*{got}"):
        metric.compute() if alone else MetricCollection({"own": metric}).compute()


class Unadded(DistributedMetric):
    def __init__(self):
        self.total = Sum()

    def update(self, x):
        self.total.update(x)

    def compute_from(self, states):
        return {"x": states["total"].value}


def test_a_state_that_was_set_and_not_added_is_told():
    message = r"Unadded sets the state 'total' as an attribute.*self.add_state\('total', Sum\(\.\.\.\)\)"
    with pytest.raises(ConfigError, match=message):
        MetricCollection({"m": Unadded()})
    with pytest.raises(ConfigError, match=message):
        Unadded().compute()


def test_a_checkpoint_holds_each_state_and_not_the_block_it_was_cut_from():
    metrics = means(50)
    for i in range(50):
        metrics[f"w{i}"] = Probe(f"w{i}", s=Moments((7,)))
    collection = MetricCollection(metrics)
    buffers = 0
    for metric in collection.state_dict()["metrics"].values():
        for state in metric.values():
            tensor = state["data"]
            assert tensor.untyped_storage().nbytes() == tensor.numel() * 8
            buffers += tensor.numel()
    assert buffers == 50 * 2 + 50 * 4 * 7


GARBAGE = [
    (7, "expected what state_dict"),
    ({"syncs": 1}, "expected what state_dict"),
    ({"syncs": 1, "metrics": {"other": {}}}, "the collection holds the metrics"),
    ({"syncs": 1, "metrics": {"m": [1, 2]}}, "m expected what its state_dict"),
    ({"syncs": 1, "metrics": {"m": {"mean": {}}}}, "m expected what its state_dict"),
    ({"syncs": 1, "metrics": {"m": {"mean": {"signature": "Sum[]"}}}}, "m has the states"),
    ({"syncs": 1, "metrics": {"m": {"mean": {"signature": "Mean[]"}}}}, "expected tensors"),
    ({"syncs": 1, "metrics": {"m": {"mean": {"signature": "Mean[]", "data": 3}}}}, "'data' is int"),
    (
        {"syncs": 1, "metrics": {"m": {"mean": {"signature": "Mean[]", "data": torch.zeros(2, 3)}}}},
        r"expected 'data' of shape \[2, 1\], got \[2, 3\]",
    ),
]


@pytest.mark.parametrize(("saved", "message"), GARBAGE)
def test_what_is_no_checkpoint_is_one_clear_error_on_every_rank_and_changes_nothing(saved, message):
    def body(context):
        collection = MetricCollection({"m": WeightedMean("m")}, context)
        collection["m"].update(2.0 + context.rank)
        with pytest.raises(ConfigError, match=message):
            collection.load_state_dict(saved)
        return float(collection.compute()["m"])

    assert run_ranks(2, body) == [2.5, 2.5]


def test_a_single_metric_says_the_same_of_its_own():
    metric = WeightedMean("m")
    with pytest.raises(ConfigError, match=r"WeightedMean.mean does not fit: expected 'data' of shape"):
        metric.load_state_dict({"mean": {"signature": "Mean[]", "data": torch.zeros(3)}})
