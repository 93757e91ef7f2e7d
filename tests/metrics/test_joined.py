"""Ranks with different metrics in one sync: what the sync's thread may touch while training goes on."""

from __future__ import annotations

import threading

import torch.distributed as dist

from hjepa_dist_metrics import DistributedMetric, MetricCollection, WeightedMean
from hjepa_dist_metrics.metrics.collection import apply_formulas
from hjepa_dist_metrics.metrics.merging import Joining
from hjepa_dist_metrics.states import Sum
from hjepa_dist_metrics.sync import Part


class Watched(DistributedMetric):
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
    collection = MetricCollection({"own": Watched()})
    collection["own"].update(2.0)
    if dist.get_rank() == 0:
        collection.add("more", WeightedMean("more"))
        collection["more"].update(3.0)
    joining = Joining(Part(), dict(collection))
    handle = collection.join(lambda joined: joined.gather_values(apply_formulas), list(collection), joining)
    values = {tag: float(value) for tag, value in handle.result(30.0).items()}
    return values, collection["own"].asked_by == {threading.get_ident()}


def test_states_are_read_by_the_training_thread_alone(gloo):
    assert gloo(2).run(sync_uneven) == [({"total": 4.0, "more": 3.0}, True)] * 2
