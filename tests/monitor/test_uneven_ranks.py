"""Ranks that are at different points of a run, or have nothing at all: one rule, on real processes."""

import os

import numpy as np
import pytest
import torch
from torch import nn

from hjepa_dist_metrics import RankFailureError, TrainingMonitor
from hjepa_dist_metrics.sinks import read_jsonl
from tests.helpers.processes import run_disposable

DIM = 3


def settings(log_dir, **more):
    plain = {"tensorboard": {"enabled": False}, "figures": {"enabled": False}, "dashboards": []}
    return (
        {"experiment_name": "run", "log_dir": log_dir, "log_frequency": 2, "sync_timeout": 60.0}
        | plain
        | more
    )


def lines(log_dir):
    return read_jsonl(log_dir / "metrics" / "run.jsonl")


def series(log_dir, tag):
    return {line["step"]: line[tag] for line in lines(log_dir) if tag in line}


def loss_of(rank, step):
    return 1.0 + step + 10.0 * rank


def train(log_dir, epochs_by_rank, course="plain", more=None):
    """Train without DDP for some epochs of as many steps as this rank has; return what it ended with."""
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    model = nn.Linear(DIM, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    taken = 0
    with TrainingMonitor(model, optimizer, settings(log_dir, **(more or {}))) as monitor:
        for steps in epochs_by_rank[rank]:
            for _ in range(steps):
                model(torch.ones(2, DIM)).square().mean().backward()
                if course == "clip":
                    monitor.clip_grad_norm_(1e-3 if taken % 2 else 1e3)
                optimizer.step()
                optimizer.zero_grad()
                masked = {"mask": torch.arange(4).repeat(2, 1) < 2} if course == "masks" else {}
                silent = course == "silent" and rank == 1 and taken == 0
                monitor.step(samples=2, losses=None if silent else loss_of(rank, taken), **masked)
                if course == "checkpoints" and taken % 3 == 2:
                    monitor.state_dict()
                taken += 1
            if course == "epochs":
                monitor.end_epoch()
        monitor.finish()
        same = {tag: number for tag, number in monitor.latest.items() if not tag.startswith("sync/")}
        return same, monitor.step_number


def mean_loss(log_dir):
    """Return the mean over all samples, put together from the logs' means and totals."""
    totals = series(log_dir, "performance/total_samples")
    means = series(log_dir, "loss/total")
    counts = np.diff([0.0, *(totals[step] for step in sorted(means))])
    return np.average([means[step] for step in sorted(means)], weights=counts)


@pytest.mark.parametrize("steps", [(3, 8), (8, 3), (0, 5), (5, 0), (4, 4)])
@pytest.mark.parametrize("course", ["clip", "masks", "checkpoints", "inline"])
def test_no_step_is_lost_whoever_ends_first(gloo, tmp_path, course, steps):
    more = {"sync": "inline"} if course == "inline" else {}
    results = gloo(2).run(train, str(tmp_path), [(n,) for n in steps], course, more)
    everything = [loss_of(rank, step) for rank, n in enumerate(steps) for step in range(n)]
    assert mean_loss(tmp_path) == pytest.approx(np.mean(everything), rel=1e-9)
    assert series(tmp_path, "performance/total_samples")[max(steps) - 1] == 2 * sum(steps)
    for tag in ("loss/total", "performance/total_samples", "data/steps_missing"):
        written = [line["step"] for line in lines(tmp_path) if tag in line]
        assert written == sorted(set(written))
        assert max(written, default=max(steps) - 1) == max(steps) - 1
    assert results[0] == results[1]
    missing = abs(steps[0] - steps[1])
    last = max(steps) - 1
    behind = series(tmp_path, "data/steps_missing")  # while the other goes on, and at the end
    assert behind == {step: step + 1 - min(steps) for step in behind}
    assert (last in behind) == bool(missing)
    assert series(tmp_path, "data/ended_early_rank") == ({last: int(np.argmin(steps))} if missing else {})
    if course == "clip":
        clipped = np.mean([100.0 * (taken % 2) for taken in range(max(steps))])
        assert series(tmp_path, "gradient/clipping_percentage")[max(steps) - 1] == pytest.approx(clipped)


def test_ranks_with_nothing_at_all_end(gloo, tmp_path):
    results = gloo(2).run(train, str(tmp_path), [(0,), (0,)])
    assert [step for _, step in results] == [0, 0]
    assert lines(tmp_path) == []


@pytest.mark.parametrize("epochs", [((3, 2), (5, 1)), ((0, 4), (3, 4)), ((2, 2), (2, 2))])
def test_epochs_of_different_lengths_meet_at_their_ends(gloo, tmp_path, epochs):
    results = gloo(2).run(train, str(tmp_path), epochs, "epochs")
    ends = np.cumsum([max(lengths) for lengths in zip(*epochs, strict=True)])
    assert [step for _, step in results] == [ends[-1]] * 2
    expected = {}
    for epoch, end in enumerate(ends):
        starts = [sum(lengths[:epoch]) for lengths in epochs]
        losses = [
            loss_of(rank, starts[rank] + step) for rank in (0, 1) for step in range(epochs[rank][epoch])
        ]
        expected[int(end) - 1] = np.mean(losses)
    assert series(tmp_path, "train_epoch/loss") == pytest.approx(expected, rel=1e-9)
    behind = np.ptp(np.cumsum(epochs, axis=1), axis=0)  # of the two ranks, at the end of each epoch
    growing = behind > np.maximum.accumulate([0, *behind[:-1]])
    missing = {int(end) - 1: n for end, n, grows in zip(ends, behind, growing, strict=True) if grows}
    written = series(tmp_path, "data/steps_missing")
    assert {step: number for step, number in written.items() if step in ends - 1} == missing
    assert series(tmp_path, "performance/total_samples")[int(ends[-1]) - 1] == 2 * np.sum(epochs)


def test_a_rank_whose_first_step_has_no_loss_adds_nothing_to_it(gloo, tmp_path):
    gloo(2).run(train, str(tmp_path), [(3,), (3,)], "silent")
    first = loss_of(0, 0)
    later = np.mean([loss_of(rank, step) for rank in (0, 1) for step in (1, 2)])
    assert series(tmp_path, "loss/total") == pytest.approx({0: first, 2: later}, rel=1e-9)


def dies_after_the_others_ended(rank, log_dir):
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with TrainingMonitor(model, optimizer, settings(log_dir)) as monitor:
        monitor.step(samples=1)
        monitor.flush()
        if rank == 1:
            os._exit(1)
        with pytest.raises(RankFailureError) as caught:
            monitor.finish()
    return caught.value.ranks


def test_a_dead_rank_ends_the_wait_for_it(tmp_path):
    assert run_disposable(3, dies_after_the_others_ended, str(tmp_path)) == {0: (1,), 2: (1,)}


def finishes_and_goes_on(log_dir, first, more):
    """Finish, save, and go on in a second monitor."""
    rank = torch.distributed.get_rank()
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with TrainingMonitor(model, optimizer, settings(log_dir)) as monitor:
        for step in range(first[rank]):
            monitor.step(samples=2, losses=loss_of(rank, step))
        monitor.finish()
        saved = monitor.state_dict()
    start = saved["step_number"]
    with TrainingMonitor(model, optimizer, settings(log_dir), start_step=start, resume=True) as monitor:
        monitor.load_state_dict(saved)
        for step in range(start, start + more):
            monitor.step(samples=2, losses=loss_of(rank, step))


@pytest.mark.parametrize("first", [(6, 6), (3, 6)])
def test_a_run_goes_on_from_a_checkpoint_taken_at_its_end(gloo, tmp_path, first):
    gloo(2).run(finishes_and_goes_on, str(tmp_path), first, 5)
    assert series(tmp_path, "performance/total_samples") == {
        step: 2.0 * sum(min(step + 1, n) if step < 6 else n + step - 5 for n in first)
        for step in (0, 2, 4, 5, 6, 8, 10)
    }


def ends_on_a_log_step(log_dir, steps, rate):
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    model = nn.Linear(DIM, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    with TrainingMonitor(model, optimizer, settings(log_dir)) as monitor:
        for step in range(steps[rank]):
            model(torch.ones(2, DIM) * (1 + step)).square().mean().backward()
            monitor.clip_grad_norm_(1.0)
            optimizer.step()
            optimizer.zero_grad()
            monitor.step(samples=2, losses=loss_of(rank, step))
        monitor.finish()
        return monitor.step_number


@pytest.mark.parametrize("steps", [(6, 9), (9, 6), (5, 9), (7, 9)])
def test_a_rank_that_ends_on_a_log_step_has_other_values_of_what_all_have_alike(gloo, tmp_path, steps):
    assert gloo(2).run(ends_on_a_log_step, str(tmp_path), steps, 0.1) == [9, 9]
    assert series(tmp_path, "performance/total_samples")[8] == 2 * sum(steps)
