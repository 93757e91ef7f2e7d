"""The verdict in a run: console, outputs, the user's function, and a stop at the same step on every rank."""

import logging

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from hjepa_dist_metrics import TrainingMonitor
from hjepa_dist_metrics.sinks import read_jsonl

DIM = 8


def collapsing(log_dir, settings=None, steps=30, on_alert=None, own=0):
    """Take steps whose features fall onto one point; return the steps done, the finding, the alerts."""
    torch.manual_seed(0)
    model = nn.Linear(DIM, DIM)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    generator = torch.Generator().manual_seed(own)
    config = {"experiment_name": "run", "log_dir": str(log_dir), "log_frequency": 2, **(settings or {})}
    config = {"cadence": {"representations": 2}, "alerts": {"stop_on": ["collapse"]}, **config}
    with TrainingMonitor(model, optimizer, config, on_alert=on_alert) as monitor:
        for step in range(steps):
            spread = 1.0 if step < 10 else 1e-3
            features = torch.ones(DIM) + spread * torch.randn(16, DIM, generator=generator)
            monitor.step(samples=16, losses=1.0 / (1 + step), features=features)
            if monitor.should_stop:
                break
        verdict = monitor.health()
    return monitor.step_number, monitor.should_stop, [str(alert) for alert in monitor.alerts], str(verdict)


def collapsing_on_this_rank(log_dir, settings):
    return collapsing(log_dir, settings, own=torch.distributed.get_rank())


# evidence at 12 (the median of two logs), 14, 16 and 18: five steps and more
STOPS = [("inline", 19), ("background", 20)]


@pytest.mark.parametrize(("sync", "done"), STOPS)
def test_a_run_stops_as_soon_as_every_rank_knows(tmp_path, sync, done):
    steps, finding, alerts, verdict = collapsing(tmp_path, {"sync": sync})
    assert (steps, finding) == (done, "point_collapse")
    assert len(alerts) == 1
    assert alerts[0].startswith("step 18: point_collapse: collapse/mean_similarity = ")
    assert verdict.startswith("failing: point_collapse: all samples have the same features since step 12: ")


@pytest.mark.parametrize(("sync", "done"), STOPS)
def test_every_rank_stops_at_the_same_step_with_the_same_verdict(gloo, tmp_path, sync, done):
    first, second = gloo(2).run(collapsing_on_this_rank, str(tmp_path), {"sync": sync})
    assert first == second
    assert first[:2] == (done, "point_collapse")


def test_without_stop_on_nothing_stops(tmp_path):
    steps, finding, alerts, _ = collapsing(tmp_path, {"alerts": {}})
    assert (steps, finding, len(alerts)) == (30, None, 1)


def test_a_finding_is_shown_everywhere_once(tmp_path, caplog):
    alerts = []
    with caplog.at_level(logging.WARNING):
        collapsing(tmp_path, on_alert=alerts.append)
    assert [alert.rule for alert in alerts] == ["point_collapse"]
    printed = [r.getMessage() for r in caplog.records if r.name == "hjepa_dist_metrics.health"]
    assert len(printed) == 1
    assert printed[0].startswith("step 18: point_collapse (failing): all samples have the same features: ")
    events = EventAccumulator(str(tmp_path / "tensorboard/run")).Reload()
    (log,) = events.Tensors("alerts/log/text_summary")
    page = log.tensor_proto.string_val[0].decode()
    assert page.startswith("## failing at step 18")
    assert "**Likely cause.** a missing stop-gradient" in page
    assert "| 18 | point_collapse |" in page
    scores = {event.step: event.value for event in events.Scalars("health/score")}
    assert (scores[16], scores[18]) == (1.0, 0.0)
    assert min(event.step for event in events.Scalars("alerts/point_collapse") if event.value) == 18


def test_a_callback_that_fails_is_reported_and_does_not_end_the_run(tmp_path, caplog):
    def broken(alert):
        raise RuntimeError("no network")

    steps, finding, *_ = collapsing(tmp_path, on_alert=broken)
    assert (steps, finding) == (20, "point_collapse")
    assert "on_alert failed on the alert: step 18: point_collapse" in caplog.text


def test_the_page_that_explains_the_run_is_written_once(tmp_path):
    collapsing(tmp_path)
    pages = [line for line in read_jsonl(tmp_path / "metrics/run.jsonl") if "notes/how_to_read" in line]
    assert len(pages) == 1
    events = EventAccumulator(str(tmp_path / "tensorboard/run")).Reload()
    (page,) = events.Tensors("notes/how_to_read/text_summary")
    assert b"# How to read this run" in page.tensor_proto.string_val[0]


def test_numbers_of_ones_own_need_no_others(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with TrainingMonitor(model, optimizer, {"log_dir": str(tmp_path)}) as monitor:
        for tag in ("alignment/text_vs_image/diagonal_similarity", "ema/weight_move", "masking/mask_ratio"):
            monitor.log({tag: 0.5})
    assert monitor.latest["ema/weight_move"] == 0.5
    assert monitor.health().verdict == "healthy"


@pytest.mark.parametrize("spike", [101, 130, 199, 200])
def test_a_spike_at_any_step_between_two_logs_is_a_warning(tmp_path, spike):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    generator = torch.Generator().manual_seed(0)
    with TrainingMonitor(model, optimizer, {"log_dir": str(tmp_path)}) as monitor:
        for step in range(201):
            noise = 0.01 * torch.randn((), generator=generator).item()
            monitor.step(samples=1, losses=1.0 + noise + (10.0 if step == spike else 0.0))
    assert [(alert.step, alert.rule) for alert in monitor.alerts] == [(200, "loss_spike")]
    assert monitor.health().verdict == "warning"


def test_the_verdict_is_written_once_a_step(tmp_path):
    model = nn.Linear(2, 2)
    config = {"log_dir": str(tmp_path), "log_frequency": 4}
    with TrainingMonitor(model, torch.optim.SGD(model.parameters(), lr=0.1), config) as monitor:
        for _ in range(7):
            monitor.step(samples=1, losses=0.5)
        monitor.end_epoch()
        monitor.log({"val/loss": 0.5})
    records = [r for r in read_jsonl(tmp_path / "metrics" / "hjepa_default.jsonl") if "step" in r]
    seen = [(r["step"], tag) for r in records for tag in r if tag.startswith(("alerts/", "health/"))]
    assert (6, "health/score") in seen
    assert len(seen) == len(set(seen))


def test_a_module_that_the_loss_does_not_reach_is_named(tmp_path):
    torch.manual_seed(0)
    body, head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)
    groups = [{"params": body.parameters(), "name": "body"}, {"params": head.parameters(), "name": "head"}]
    model = torch.nn.Sequential(body, head)
    optimizer = torch.optim.SGD(groups, lr=0.05)
    config = {"experiment_name": "run", "log_dir": str(tmp_path), "log_frequency": 5}
    with TrainingMonitor(model, optimizer, config) as monitor:
        for _ in range(120):
            loss = (head(body(torch.randn(16, 4)).tanh()) - 1.0).square().mean()
            loss.backward()
            body.zero_grad()  # as behind a detach
            monitor.clip_grad_norm_(1.0)
            optimizer.step()
            optimizer.zero_grad()
            monitor.step(samples=16, losses=loss)
        monitor.finish()
        found = {finding.name: finding for finding in monitor.health().findings}
    assert "unmoved_parameters" in found
    assert "update/body_norm" in str(found["unmoved_parameters"])
