"""The slow rank is named, and why it is slow."""

import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from hjepa_dist_metrics import ConfigError, MetricCollection, Stragglers
from hjepa_dist_metrics.metrics.system.stragglers import heat_map, split_times
from hjepa_dist_metrics.monitor.metric_registry import MetricRegistry
from hjepa_dist_metrics.monitor.observer import Scope
from hjepa_dist_metrics.monitor.observers.timing import Timing
from hjepa_dist_metrics.monitor.schedule import Schedule
from hjepa_dist_metrics.settings import LoggingConfig
from hjepa_dist_metrics.values import Image, Text
from tests.helpers.ranks import run_ranks

# Four ranks whose backward holds an all-reduce: whoever comes early waits there, so that steps end together.
EVEN = [(0.10, 0.20, 0.01, 0.01)] * 4


def ranks_report(times, steps=5):
    def body(context):
        stragglers = Stragglers(window=8)
        for _ in range(steps):
            stragglers.update(*times[context.rank])
        return MetricCollection({"s": stragglers}, context).compute()

    return run_ranks(len(times), body)[0]


def test_even_ranks_score_one():
    values = ranks_report(EVEN)
    assert float(values["performance/straggler_score"]) == pytest.approx(1.0)
    assert float(values["performance/collective_wait_time_ms"]) == pytest.approx(0.0)
    assert "performance/straggler" not in values


def test_a_slow_forward_is_compute_and_the_others_wait_in_their_backward():
    times = [(0.10, 0.40, 0.01, 0.01)] * 4
    times[2] = (0.30, 0.20, 0.01, 0.01)
    values = ranks_report(times)
    # own times: 0.1 + 0.01 + 0.2 + 0.01 = 0.32, and 0.52 on rank 2
    assert float(values["performance/straggler_score"]) == pytest.approx(0.32 / 0.52)
    assert float(values["performance/slowest_rank"]) == 2
    assert float(values["performance/collective_wait_time_ms"]) == pytest.approx(1e3 * 0.2 * 3 / 4)
    assert values["performance/straggler"] == Text(
        "rank 2 is slow in compute: 510.0 ms a step, the other ranks 310.0 ms"
    )


def test_a_slow_loader_is_data():
    times = [(0.10, 0.60, 0.01, 0.01)] * 4
    times[1] = (0.10, 0.20, 0.41, 0.01)
    values = ranks_report(times)
    assert float(values["performance/slowest_rank"]) == 1
    assert values["performance/straggler"].markdown.startswith("rank 1 is slow in data: 410.0 ms")


def test_one_slow_step_is_no_straggler():
    def body(context):
        stragglers = Stragglers(window=8)
        for step in range(8):
            slow = context.rank == 0 and step == 3
            stragglers.update(2.0 if slow else 0.1, 0.2)
        return MetricCollection({"s": stragglers}, context).compute()

    assert float(run_ranks(3, body)[1]["performance/straggler_score"]) == pytest.approx(1.0)


def test_times_split_by_hand():
    table = np.array([[[0.1, 0.5, 0.0], [0.2, 0.3, 0.1]], [[0.3, 0.3, 0.0], [0.1, 0.4, 0.1]]])
    compute, data, wait = split_times(table)
    np.testing.assert_allclose(compute, [[0.4, 0.5], [0.6, 0.4]])
    np.testing.assert_allclose(data, [[0.0, 0.1], [0.0, 0.1]])
    np.testing.assert_allclose(wait, [[0.2, 0.0], [0.0, 0.1]])


def test_the_map_has_a_row_for_each_rank_and_a_column_for_each_step():
    pixels = heat_map(np.array([[1.0, 1.0, 0.0], [1.0, 1.5, 0.0], [3.0, 1.0, 0.0]]))
    assert pixels.shape == (36, 36, 3)
    cells = pixels[6::12, 6::12]
    assert cells[0, 0].tolist() == [255, 255, 255]
    assert cells[2, 0].tolist() == [255, 0, 0]
    assert cells[1, 1].tolist() == [255, 128, 128]
    assert cells[1, 2].tolist() == [255, 255, 255]
    assert isinstance(ranks_report(EVEN)["performance/straggler_map"], Image)


def test_nothing_on_one_rank_or_without_steps_in_common():
    stragglers = Stragglers()
    stragglers.update(0.1)
    assert stragglers.compute() == {}

    def body(context):
        lonely = Stragglers(window=4)
        if context.rank == 0:
            lonely.update(0.1)
        return MetricCollection({"s": lonely}, context).compute()

    assert run_ranks(2, body) == [{}, {}]


def test_bad_windows_and_reports():
    with pytest.raises(ConfigError, match="window=0"):
        Stragglers(0)
    with pytest.raises(ConfigError, match="'picture'"):
        Stragglers(report="picture")


def loader(seconds: float):
    """Yield a batch after a while."""
    time.sleep(seconds)
    yield None


def train_with_a_sleeper(where: str, sleeper: int):
    """Train a DDP model; one rank sleeps in its forward, in its loader, or nobody does."""
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)))
    collection = MetricCollection()
    timing = Timing()
    schedule = Schedule(LoggingConfig().cadences().every(), 0)
    timing.attach(Scope(model, [], LoggingConfig(), MetricRegistry(collection), schedule))
    pause = 0.04 if rank == sleeper else 0.0
    for _ in range(8):
        next(timing.batches(loader(0.005 + (pause if where == "loader" else 0.0))))
        with timing.phase("forward"):
            time.sleep(0.02 + (pause if where == "forward" else 0.0))
            loss = model(torch.randn(16, 32)).square().mean()
        with timing.phase("backward"):
            loss.backward()
        timing.begin_step()
        timing.observe(16)
        timing.end_step()
    timing.before_log(["scalars"])
    values = collection.compute()
    text = values.get("performance/straggler")
    return float(values["performance/slowest_rank"]), None if text is None else text.markdown


@pytest.mark.parametrize(("where", "cause"), [("forward", "compute"), ("loader", "data")])
@pytest.mark.parametrize("sleeper", [0, 2])
def test_the_sleeping_rank_and_its_cause_are_named(gloo, where, cause, sleeper):
    for slowest, text in gloo(4).run(train_with_a_sleeper, where, sleeper):
        assert slowest == sleeper
        assert text.startswith(f"rank {sleeper} is slow in {cause}")


def test_nobody_is_blamed_where_nobody_sleeps(gloo):
    for _, text in gloo(4).run(train_with_a_sleeper, "nowhere", 1):
        assert text is None
