"""The monitor on real processes: who writes, what is merged, ranks that end at different steps or fail."""

import numpy as np
import pytest
import torch
from torch import nn

from hjepa_dist_metrics import DesyncError, TrainingMonitor, catalog
from hjepa_dist_metrics.sinks import read_jsonl

DIM = 6


def train(log_dir, steps_by_rank, settings=None, width_by_rank=None):
    """Train without DDP, so that ranks may end apart; return the losses that this rank saw."""
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    model = nn.Linear(DIM, DIM)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    generator = torch.Generator().manual_seed(100 + rank)
    data = [torch.randn(4 + rank, DIM, generator=generator) for _ in range(steps_by_rank[rank])]
    config = {"experiment_name": "run", "log_dir": log_dir, "log_frequency": 3, **(settings or {})}
    seen = []
    with TrainingMonitor(model, optimizer, {**config, "sync_timeout": 20.0}) as monitor:
        for x in monitor.batches(data):
            loss = (model(x) - x).square().mean()
            seen.append((len(x), loss.item()))
            width = DIM if width_by_rank is None else width_by_rank[rank]
            monitor.step(samples=len(x), losses=loss, features=torch.randn(8, width))
        monitor.finish()
        return seen, monitor.latest["loss/total"]


def failing(log_dir, steps_by_rank, width_by_rank):
    try:
        train(log_dir, steps_by_rank, width_by_rank=width_by_rank)
    except DesyncError as error:
        return str(error)
    return None


def mean(pairs):
    counts, losses = zip(*pairs, strict=True)
    return np.average(losses, weights=counts)


def series(tmp_path, tag):
    lines = read_jsonl(tmp_path / "metrics" / "run.jsonl")
    return {line["step"]: line[tag] for line in lines if tag in line}


@pytest.mark.parametrize("sync", ["background", "inline"])
@pytest.mark.parametrize("steps", [(8, 8), (2, 8), (8, 3), (7, 7)])
def test_ranks_that_end_apart_lose_nothing(gloo, tmp_path, steps, sync):
    results = gloo(2).run(train, str(tmp_path), steps, {"sync": sync})
    by_rank = [seen for seen, _ in results]
    last = max(steps) - 1
    windows = [(0, 0, 1), (3, 1, 4), (6, 4, 7), (last, 7, 99)]
    expected = {
        step: mean([pair for seen in by_rank for pair in seen[start:stop]])
        for step, start, stop in windows
        if any(seen[start:stop] for seen in by_rank)
    }
    assert series(tmp_path, "loss/total") == pytest.approx(expected, rel=1e-6)
    assert [latest for _, latest in results] == pytest.approx([expected[last]] * 2, rel=1e-6)


def test_what_a_sync_costs_is_written(gloo, tmp_path):
    gloo(2).run(train, str(tmp_path), (4, 4), {"sync": "inline"})
    tags = {entry.pattern for entry in catalog.entries() if entry.pattern.startswith("sync/")}
    written = {tag: series(tmp_path, tag) for tag in tags}
    assert all(written.values())
    seconds, waits = written["sync/seconds"], written["sync/wait_seconds"]
    assert all(0 < waits[step] < seconds[step] for step in seconds)


def test_only_rank_zero_makes_files(gloo, tmp_path):
    gloo(2).run(train, str(tmp_path), (4, 4))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.suffix for path in files if path.suffix == ".jsonl") == [".jsonl"]
    assert len([path for path in files if "tfevents" in path.name]) == 1


def test_a_rank_that_cannot_observe_is_named_on_every_rank(gloo, tmp_path):
    messages = gloo(2).run(failing, str(tmp_path), (4, 4), (DIM, DIM + 1))
    assert messages[0] == messages[1]
    assert "collapse" in messages[0]
    assert "rank 1" in messages[0]
