"""A rank with nothing to say waits longer for the others than these wait for it, and says so once."""

import logging
import time

import torch.distributed as dist

from hjepa_dist_metrics import MetricCollection, WeightedMean
from hjepa_dist_metrics.sync import Participation
from tests.helpers.processes import run_disposable

LIMIT = 0.5


def patient_first_rank(rank: int) -> tuple[float, list[str]]:
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("hjepa_dist_metrics").addHandler(handler)
    connected = MetricCollection({"m": WeightedMean("m")}, sync_timeout=20.0, name="first")
    connected.compute()
    collection = MetricCollection({"m": WeightedMean("m")}, sync_timeout=LIMIT, name="second")
    dist.barrier()
    collection.compute_uneven(lambda result: None, Participation(), ["m"]).result()
    collection["m"].update(float(rank))
    if rank == 1:
        time.sleep(5 * LIMIT)
    patience = "at the end of its run, after 3 steps" if rank == 0 else ""
    part = Participation(phase=2, steps_done=3) if rank == 0 else Participation(steps_done=7)
    handle = collection.compute_uneven(
        lambda result: result.merged["m"]["mean"].value, part, ["m"], patience=patience
    )
    return handle.result(30.0), told


def test_a_patient_rank_outwaits_the_limit_and_says_where_it_waits():
    results = run_disposable(2, patient_first_rank)
    assert [value for value, _ in results.values()] == [0.5, 0.5]
    assert results[1][1] == []
    (text,) = results[0][1]
    assert text.startswith("rank 0 has waited ")
    assert "for rank 1 at the end of its run, after 3 steps; at the last sync the others had done" in text
