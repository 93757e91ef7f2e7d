"""The teacher, compared where the pair is known, also in loops that hand over no momentum."""

import copy
import logging

import numpy as np
import pytest
import torch
from torch import nn

from hjepa_dist_metrics import ConfigError, TrainingMonitor
from tests.monitor.test_monitor import config, series

DIM = 3
PLAIN = {"tensorboard": {"enabled": False}, "dashboards": [], "sync": "inline"}


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.context_encoder = nn.Sequential(nn.Linear(DIM, DIM), nn.BatchNorm1d(DIM))
        self.target_encoder = copy.deepcopy(self.context_encoder)


def flat(module):
    return np.concatenate([p.detach().double().numpy().ravel() for p in module.parameters()])


def walk(monitor, model, steps, moves, **more):
    """Move the student in each step, and the teacher where it `moves`; return |move| / |teacher| by step."""
    student, teacher = model.context_encoder, model.target_encoder
    ratios = {}
    for step in range(steps):
        with torch.no_grad():
            for p in student.parameters():
                p.add_(0.1 * torch.randn_like(p))
            before = flat(teacher)
            if moves:
                for slow, live in zip(teacher.parameters(), student.parameters(), strict=True):
                    slow.lerp_(live, 0.2)
        ratios[step] = np.linalg.norm(flat(teacher) - before) / np.linalg.norm(flat(teacher))
        monitor.step(samples=2, losses=1.0, **more)
    return ratios


@pytest.mark.parametrize("moves", [True, False])
@pytest.mark.parametrize("given", [True, False])
def test_the_teachers_move_without_a_momentum(tmp_path, moves, given):
    torch.manual_seed(0)
    model = Pair()
    for buffer in [*model.context_encoder.buffers(), *model.target_encoder.buffers()]:
        buffer.zero_()  # so that weights are all there is
    optimizer = torch.optim.SGD(model.context_encoder.parameters(), lr=0.1)
    pair = (model.context_encoder, model.target_encoder) if given else None
    watched = nn.ModuleList([model]) if given else model
    settings = config(tmp_path, log_frequency=3, **PLAIN)
    with TrainingMonitor(watched, optimizer, settings, encoders=pair) as monitor:
        expected = walk(monitor, model, 7, moves)
        divergence = np.linalg.norm(flat(model.context_encoder) - flat(model.target_encoder))
        relative = divergence / np.linalg.norm(flat(model.target_encoder))
        latest = monitor.latest
    moved = series(tmp_path, "ema/update_magnitude")
    assert moved == pytest.approx({step: expected[step] for step in (3, 6)}, rel=1e-5)
    assert latest["ema/relative_divergence"] == pytest.approx(relative, rel=1e-5)
    assert "ema/cosine" in latest
    assert not any(tag.startswith(("ema/momentum", "train/ema")) for tag in latest)


def test_the_numbers_are_those_of_a_loop_with_momentum(tmp_path):
    found = []
    for name, more in (("with", {"momentum": 0.8}), ("without", {})):
        torch.manual_seed(0)
        model = Pair()
        optimizer = torch.optim.SGD(model.context_encoder.parameters(), lr=0.1)
        with TrainingMonitor(model, optimizer, config(tmp_path / name, **PLAIN)) as monitor:
            walk(monitor, model, 4, True, **more)
            found.append(
                {t: v for t, v in monitor.latest.items() if t.startswith("ema/") and "momentum" not in t}
            )
    assert found[0] == pytest.approx(found[1], rel=1e-12)
    assert len(found[0]) == 7


def test_encoders_of_different_kinds_say_nothing_without_a_momentum(tmp_path):
    model = nn.Module()
    model.context_encoder, model.target_encoder = nn.Linear(DIM, DIM), nn.Linear(DIM, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with TrainingMonitor(model, optimizer, config(tmp_path, **PLAIN)) as monitor:
        monitor.step(samples=1)
        assert not any(tag.startswith("ema/") for tag in monitor.latest)
        with pytest.raises(ConfigError, match="must have the same parameters"):
            monitor.step(samples=1, momentum=0.9)


@pytest.mark.parametrize(("scalars", "warns"), [(0, True), (1, False)])
def test_encoders_that_are_never_read_are_named_once(tmp_path, caplog, scalars, warns):
    model = Pair()
    pair = (model.context_encoder, model.target_encoder)
    optimizer = torch.optim.SGD(pair[0].parameters(), lr=0.1)
    settings = config(tmp_path, cadence={"scalars": scalars}, **PLAIN)
    with (
        caplog.at_level(logging.WARNING),
        TrainingMonitor(model, optimizer, settings, encoders=pair) as monitor,
    ):
        for _ in range(3):
            monitor.step(samples=1)
    assert caplog.text.count("were never compared") == warns


def ranks(log_dir, wrap):
    from torch.distributed.fsdp import FullyShardedDataParallel

    torch.manual_seed(torch.distributed.get_rank())  # each trains its own
    model = Pair()
    if wrap:
        model.context_encoder, model.target_encoder = (
            FullyShardedDataParallel(m, device_id=torch.device("cpu"))
            for m in (model.context_encoder, model.target_encoder)
        )
    optimizer = torch.optim.SGD(model.context_encoder.parameters(), lr=0.1)
    with TrainingMonitor(model, optimizer, config(log_dir, **PLAIN)) as monitor:
        for _ in range(2):
            monitor.step(samples=1)
        return [monitor.latest.get("ema/update_magnitude"), flat(model.target_encoder).tolist()]


@pytest.mark.parametrize("wrap", [False, True])
def test_ranks_without_a_momentum_never_end_the_run(gloo, tmp_path, wrap):
    """Ranks that train models of their own; and FSDP1, where a rank has a part of the weights."""
    results = gloo(2).run(ranks, str(tmp_path), wrap)
    assert results[0][1] != results[1][1]
    assert [move for move, _ in results] == [None if wrap else 0.0] * 2
