"""Ranks with different metrics in one sync: what the sync's thread may touch while training goes on."""

from __future__ import annotations

import json
import math
import threading

import numpy as np
import pytest
import torch.distributed as dist

from hjepa_dist_metrics import DesyncError, DistributedMetric, MetricCollection, WeightedMean
from hjepa_dist_metrics.metrics.collection import apply_formulas
from hjepa_dist_metrics.metrics.value_codec import decode_value, encode_value
from hjepa_dist_metrics.states import State, Sum
from hjepa_dist_metrics.sync import Participation
from hjepa_dist_metrics.values import Embedding, Graph, Histogram, Image, Text, Video


class TrackedParameters(DistributedMetric):
    """Moves what waits into its state when it is asked for its states, and notes who asked."""

    def __init__(self) -> None:
        self.add_state("total", Sum())
        self.asked_by: set[int] = set()

    @property
    def states(self):
        self.asked_by.add(threading.get_ident())
        return self._states

    def update(self, value: float) -> None:
        self.total.update(value)

    def compute_from(self, states):
        return {"total": states["total"].value}


def sync_uneven():
    collection = MetricCollection({"own": TrackedParameters()})
    collection["own"].update(2.0)
    if dist.get_rank() == 0:
        collection.add("more", WeightedMean("more"))
        collection["more"].update(3.0)
    handle = collection.compute_uneven(
        lambda result: result.values(apply_formulas), Participation(), list(collection)
    )
    values = {tag: float(value) for tag, value in handle.result(30.0).items()}
    return values, collection["own"].asked_by == {threading.get_ident()}


def test_states_are_read_by_the_training_thread_alone(gloo):
    assert gloo(2).run(sync_uneven) == [({"total": 4.0, "more": 3.0}, True)] * 2


class Pictures(DistributedMetric):
    """Returns a value of each kind that can be sent."""

    def __init__(self) -> None:
        self.add_state("total", Sum())

    def update(self, value: float) -> None:
        self.total.update(value)

    def compute_from(self, states):
        total = states["total"].value
        return {
            "number": total,
            "nan": float("nan"),
            "text": Text("in *words*"),
            "counts": Histogram.of(np.array([0.5, total]), np.array([0.0, 1.0, 9.0])),
            "picture": Image(np.full((2, 3, 3), 7, dtype=np.uint8)),
            "points": Embedding(np.eye(2, dtype=np.float32), ("a", "b")),
            "moving": Video(np.zeros((2, 2, 2, 1), dtype=np.uint8), 2.0),
            "graph": Graph(b"abc"),
        }


def values_of_another_rank(owners: tuple[int, ...]):
    """Return each rank's values of a metric that only some ranks have."""
    rank = dist.get_rank()
    collection = MetricCollection({"everywhere": WeightedMean("everywhere")}, name="some")
    collection["everywhere"].update(float(rank))
    if rank in owners:
        collection.add("pictures", Pictures())
        collection["pictures"].update(1.0)
    found = {}
    for _ in range(2):
        handle = collection.compute_uneven(
            lambda result: result.values(apply_formulas), Participation(), list(collection)
        )
        found = handle.result(30.0)
    return {tag: encode_value(value) for tag, value in found.items()}


@pytest.mark.parametrize("owners", [(0,), (1,), (1, 3), (0, 1, 2, 3)])
def test_every_rank_gets_the_values_of_metrics_that_it_lacks(gloo, owners):
    results = gloo(4).run(values_of_another_rank, owners)
    first = results[0]
    assert all(result == first for result in results)
    assert json.loads(first["number"]) == float(len(owners))
    assert math.isnan(decode_value(first["nan"]))
    assert decode_value(first["text"]) == Text("in *words*")
    assert decode_value(first["counts"]).counts.tolist() == [1, 1]
    assert decode_value(first["picture"]).pixels.shape == (2, 3, 3)
    assert decode_value(first["points"]).labels == ("a", "b")
    assert decode_value(first["moving"]).frames.dtype == np.uint8
    assert decode_value(first["graph"]).graph_def == b"abc"


class Homemade(State):
    """A state whose constructor does not tell what it was given."""

    def __init__(self, secret: int) -> None:
        self._secret = secret

    @property
    def signature(self):
        return "Homemade"

    def empty(self):
        return Homemade(self._secret)

    def update(self):
        pass

    def merge(self, other):
        return self

    def pack(self):
        return {}

    def _load(self, tensors):
        pass


class Odd(DistributedMetric):
    def __init__(self) -> None:
        self.add_state("home", Homemade(3))

    def update(self):
        pass

    def compute_from(self, states):
        return {}


def lacks_a_homemade_state():
    collection = MetricCollection({"m": WeightedMean("m")}, name="odd")
    if dist.get_rank() == 1:
        collection.add("odd", Odd())
    handle = collection.compute_uneven(lambda result: None, Participation(), list(collection))
    try:
        handle.result(30.0)
    except DesyncError as error:
        return str(error)
    return "no error"


def test_a_state_that_cannot_be_made_from_its_parameters_is_an_error_on_every_rank(gloo):
    first, second = gloo(2).run(lacks_a_homemade_state)
    assert first == second
    assert "Homemade" in first
    assert "secret" in first
