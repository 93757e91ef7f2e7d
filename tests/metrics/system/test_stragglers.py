"""The slow rank is named, and why it is slow."""

import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from hjepa_dist_metrics import ConfigError, MetricCollection, Stragglers
from hjepa_dist_metrics.metrics.system.stragglers import heat_map
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


def test_a_slow_forward_makes_the_others_wait_in_their_backward():
    times = [(0.10, 0.40, 0.01, 0.01)] * 4
    times[2] = (0.30, 0.20, 0.01, 0.01)
    values = ranks_report(times)
    # a step takes 0.52 s, of which the others wait 0.2
    assert float(values["performance/straggler_score"]) == pytest.approx(0.32 / 0.52)
    assert float(values["performance/slowest_rank"]) == 2
    assert float(values["performance/collective_wait_time_ms"]) == pytest.approx(1e3 * 0.2 * 3 / 4)
    assert values["performance/straggler"] == Text(
        "rank 2 is slow in forward: 300.0 ms against 100.0 ms, the other ranks wait 200.0 ms a step for it"
    )


def test_a_slow_loader_is_data():
    times = [(0.10, 0.60, 0.01, 0.01)] * 4
    times[1] = (0.10, 0.20, 0.41, 0.01)
    values = ranks_report(times)
    assert float(values["performance/slowest_rank"]) == 1
    assert values["performance/straggler"].markdown.startswith("rank 1 is slow in data: 410.0 ms")


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_slow_loader_is_found_where_others_wait_in_a_collective_that_no_clock_sees(ranks):
    """DistributedDataParallel sends buffers in its forward: the wait is in no bucket of the gradients."""
    times = [(0.25, 0.20, 0.01, 0.01, 0.0, 0.001)] * ranks
    times[1] = (0.10, 0.20, 0.16, 0.01, 0.0, 0.0)
    values = ranks_report(times)
    assert float(values["performance/straggler_score"]) == pytest.approx(0.32 / 0.47, rel=0.01)
    assert values["performance/straggler"].markdown.startswith("rank 1 is slow in data: 160.0 ms")


def measured(cause, rank, ranks=4, delay=0.3, noise=0.0, steps=12, at=range(12)):
    """Return rows of `StepTimes` of ranks, one of which has a delay in one part, and the others wait."""
    generator = np.random.default_rng(0)
    rows = [[] for _ in range(ranks)]
    for step in range(steps):
        own = np.tile([0.10, 0.20, 0.02, 0.01, 0.03], (ranks, 1))
        own *= 1 + noise * generator.random(own.shape)
        if step in at and cause is not None:
            own[rank, ("forward", "backward", "data", "optimizer", "between").index(cause)] += delay
        waits = own.sum(axis=1).max() - own.sum(axis=1)
        for r in range(ranks):
            rows[r].append((*own[r], waits[r]))
    return rows


def report_of(rows):
    def body(context):
        stragglers = Stragglers(window=12)
        stragglers.update_steps(rows[context.rank])
        assert stragglers.touched
        return MetricCollection({"s": stragglers}, context).compute()

    return run_ranks(len(rows), body)[0]


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("cause", ["data", "forward", "backward", "optimizer", "between"])
def test_measured_waits_tell_every_cause(cause, ranks):
    text = report_of(measured(cause, 1, ranks, noise=0.2))["performance/straggler"].markdown
    part = "between the phases" if cause == "between" else f"in {cause}"
    assert text.startswith(f"rank 1 is slow {part}: ")
    assert "rank 0" not in text


@pytest.mark.parametrize("ranks", [2, 4])
def test_noise_alone_names_nobody(ranks):
    values = report_of(measured(None, 0, ranks, noise=0.3))
    assert "performance/straggler" not in values


def test_a_cause_that_explains_too_little_is_unknown():
    rows = measured("forward", 1)
    rows[1] = [(f - 0.15, b + 0.15, d, o, between, w) for f, b, d, o, between, w in rows[1]]
    text = report_of(rows)["performance/straggler"].markdown
    assert text.startswith("rank 1 is slow, the cause is unknown: the other ranks wait 300.0 ms")


def test_slowness_at_times_is_told_with_its_share():
    text = report_of(measured("data", 3, at=(1, 4, 7, 10)))["performance/straggler"].markdown
    assert text.startswith("rank 3 is slow in data in 33 % of the steps")


def test_two_slow_ranks_of_five_are_both_named():
    rows = measured("forward", 1, ranks=5)
    rows[3] = rows[1]
    text = report_of(rows)["performance/straggler"].markdown
    assert "rank 1 is slow in forward" in text
    assert "rank 3 is slow in forward" in text


def test_where_waits_are_not_known_only_data_is_a_cause():
    for cause in ("forward", "backward", "data"):
        rows = measured(cause, 1)
        # a rank's waits lie in its forward, and nobody knows which part of it they are
        unknown = [[(f + w, b, d, o, between, float("nan")) for f, b, d, o, between, w in r] for r in rows]
        values = report_of(unknown)
        assert ("performance/straggler" in values) == (cause == "data")
        assert "performance/collective_wait_time_ms" not in values


def test_a_machine_all_of_whose_ranks_are_slow_is_named(monkeypatch):
    rows = measured("forward", 2)
    rows[3] = rows[2]
    tables = []
    for rank in range(4):
        name = f"node-{rank // 2}.cluster.example"
        monkeypatch.setattr(
            "hjepa_dist_metrics.metrics.system.stragglers.socket.gethostname", lambda n=name: n
        )
        stragglers = Stragglers(window=12)
        stragglers.update_steps([*rows[rank]] if rank < 3 else rows[2])
        tables.append(stragglers)
    values = run_ranks(4, lambda context: MetricCollection({"s": tables[context.rank]}, context).compute())[0]
    text = values["performance/straggler"].markdown
    assert text.startswith("all ranks of machine node-1.cluster.example are slow")
    assert "rank 2 on node-1.cluster.example is slow in forward" in text


def test_one_slow_step_is_no_straggler():
    def body(context):
        stragglers = Stragglers(window=8)
        for step in range(8):
            slow = context.rank == 0 and step == 3
            stragglers.update(2.0 if slow else 0.1, 0.2)
        return MetricCollection({"s": stragglers}, context).compute()

    values = run_ranks(3, body)[1]
    assert float(values["performance/straggler_score"]) == pytest.approx(1.0)
    assert "performance/straggler" not in values


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


class Slow(torch.autograd.Function):
    """Sleep in the backward."""

    @staticmethod
    def forward(ctx, x, seconds):
        ctx.seconds = seconds
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(ctx.seconds)
        return gradient, None


def loader(seconds: float):
    """Yield a batch after a while."""
    time.sleep(seconds)
    yield None


def wrapped(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
    if kind == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    return fully_shard(model)


def train_with_a_sleeper(kind: str, where: str, sleeper: int) -> str | None:
    """Train a model; one rank sleeps in one part of its step, or nobody does."""
    rank = dist.get_rank()
    model = wrapped(kind)
    collection = MetricCollection()
    timing = Timing()
    schedule = Schedule(LoggingConfig().cadences().every(), 0)
    timing.attach(Scope(model, [], LoggingConfig(), MetricRegistry(collection), schedule))
    pause = 0.12 if rank == sleeper else 0.0
    for _ in range(12):
        next(timing.batches(loader(pause if where == "data" else 0.0)))
        with timing.phase("forward"):
            time.sleep(0.01 + (pause if where == "forward" else 0.0))
            output = model(torch.randn(16, 32))
            loss = Slow.apply(output, pause if where == "backward" else 0.0).square().mean()
        with timing.phase("backward"):
            loss.backward()
        with timing.phase("optimizer"):
            time.sleep(pause if where == "optimizer" else 0.0)
        time.sleep(pause if where == "between" else 0.0)
        timing.begin_step()
        timing.observe(16)
        timing.end_step()
    timing.before_log(["scalars"])
    values = collection.compute()
    timing.close()
    text = values.get("performance/straggler")
    return None if text is None else text.markdown


@pytest.mark.parametrize("where", ["data", "forward", "backward", "optimizer", "between"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_the_sleeping_rank_and_its_cause_are_named(gloo, kind, where):
    part = "between the phases" if where == "between" else f"in {where}"
    for text in gloo(2).run(train_with_a_sleeper, kind, where, 1):
        assert text is not None
        # A machine that is busy with other work may hide the cause, and never names a wrong one.
        assert text.startswith((f"rank 1 is slow {part}", "rank 1 is slow, the cause is unknown"))
        assert "rank 0" not in text


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_nobody_is_named_where_nobody_sleeps(gloo, kind):
    for text in gloo(2).run(train_with_a_sleeper, kind, "nowhere", 1):
        assert text is None
