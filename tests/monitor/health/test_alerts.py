"""Alerts in a run: patience and hysteresis, who hears of them, and a stop at the same step on every rank."""

import logging

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from hjepa_dist_metrics import TrainingMonitor
from hjepa_dist_metrics.monitor.health.alerts import AlertBook, Finding
from hjepa_dist_metrics.settings.schema import AlertsConfig
from hjepa_dist_metrics.sinks import read_jsonl

DIM = 8


def book(patience=2, recovery=2):
    def high(numbers):
        value = numbers.get("x")
        if value is None:
            return None
        return [Finding("x", value, "too high", at_once=value > 100)] if value > 1 else []

    return AlertBook(AlertsConfig(patience=patience, recovery=recovery), {"high": high})


def test_a_rule_needs_patience_to_fire_and_recovery_to_rest():
    alerts = book()
    seen = []
    for step, x in enumerate([0, 2, 0, 2, 2, 2, 0, 2, 0, 0, 2, 2]):
        begun = alerts.evaluate(step, {"x": float(x)})
        seen.append((len(begun), int(alerts.scalars()["alerts/high"])))
    assert [begins for begins, _ in seen] == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1]
    assert [fires for _, fires in seen] == [0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 1]


def test_what_cannot_be_told_changes_nothing_and_what_is_urgent_fires_at_once():
    alerts = book(patience=3)
    assert alerts.evaluate(0, {}) == []
    assert alerts.scalars() == {}
    (alert,) = alerts.evaluate(1, {"x": 101.0})
    assert str(alert) == "step 1: high: x = 101 (too high)"
    assert alerts.evaluate(2, {}) == []
    assert alerts.firing() == {"high"}


def test_the_log_is_a_table_with_the_latest_first():
    alerts = book(patience=1, recovery=1)
    for step, x in enumerate([2.0, 0.0, 3.0]):
        alerts.evaluate(step, {"x": x})
    rows = alerts.markdown().splitlines()[2:]
    assert rows == ["| 2 | high | `x` | 3 | too high |", "| 0 | high | `x` | 2 | too high |"]


def collapsing(log_dir, settings=None, steps=30, on_alert=None, own=0):
    """Take steps whose features fall onto one point; return the steps done, the rule, the alerts."""
    torch.manual_seed(0)
    model = nn.Linear(DIM, DIM)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    generator = torch.Generator().manual_seed(own)
    config = {"experiment_name": "run", "log_dir": str(log_dir), "log_frequency": 2, **(settings or {})}
    config = {"cadence": {"representations": 2}, "alerts": {"stop_on": ["collapse"]}, **config}
    with TrainingMonitor(model, optimizer, config, on_alert=on_alert) as monitor:
        for step in range(steps):
            spread = 1.0 if step < 6 else 1e-3
            features = torch.ones(DIM) + spread * torch.randn(16, DIM, generator=generator)
            monitor.step(samples=16, losses=1.0 / (1 + step), features=features)
            if monitor.should_stop:
                break
    return monitor.step_number, monitor.should_stop, [str(alert) for alert in monitor.alerts]


def collapsing_on_this_rank(log_dir, settings):
    return collapsing(log_dir, settings, own=torch.distributed.get_rank())


# bad at 6, 8 and 10, three evaluations: 11 steps are done; in the background the next one waits for the sync
STOPS = [("inline", 11), ("background", 12)]


@pytest.mark.parametrize(("sync", "done"), STOPS)
def test_a_run_stops_as_soon_as_every_rank_knows(tmp_path, sync, done):
    steps, rule, alerts = collapsing(tmp_path, {"sync": sync})
    assert (steps, rule) == (done, "collapse")
    assert len(alerts) == 1
    assert alerts[0].startswith("step 10: collapse: collapse/mean_similarity")


@pytest.mark.parametrize(("sync", "done"), STOPS)
def test_every_rank_stops_at_the_same_step(gloo, tmp_path, sync, done):
    first, second = gloo(2).run(collapsing_on_this_rank, str(tmp_path), {"sync": sync})
    assert first == second
    assert first[:2] == (done, "collapse")


def test_without_stop_on_nothing_stops(tmp_path):
    steps, rule, alerts = collapsing(tmp_path, {"alerts": {}})
    assert (steps, rule, len(alerts)) == (30, None, 1)


def test_an_alert_is_heard_of_everywhere_once(tmp_path, caplog):
    heard = []
    with caplog.at_level(logging.WARNING):
        collapsing(tmp_path, on_alert=heard.append)
    assert [alert.rule for alert in heard] == ["collapse"]
    assert sum("alert: step 10: collapse" in record.getMessage() for record in caplog.records) == 1
    events = EventAccumulator(str(tmp_path / "tensorboard/run")).Reload()
    (log,) = events.Tensors("alerts/log/text_summary")
    assert "| 10 | collapse |" in log.tensor_proto.string_val[0].decode()
    fires = {event.step: event.value for event in events.Scalars("alerts/collapse")}
    assert (fires[8], fires[10]) == (0.0, 1.0)


def test_a_callback_that_fails_is_reported_and_does_not_end_the_run(tmp_path, caplog):
    def broken(alert):
        raise RuntimeError("no network")

    steps, rule, _ = collapsing(tmp_path, on_alert=broken)
    assert (steps, rule) == (12, "collapse")
    assert "on_alert failed on the alert: step 10: collapse" in caplog.text


def test_the_page_that_explains_the_run_is_written_once(tmp_path):
    collapsing(tmp_path)
    pages = [line for line in read_jsonl(tmp_path / "metrics/run.jsonl") if "notes/how_to_read" in line]
    assert len(pages) == 1
    events = EventAccumulator(str(tmp_path / "tensorboard/run")).Reload()
    (page,) = events.Tensors("notes/how_to_read/text_summary")
    assert b"# How to read this run" in page.tensor_proto.string_val[0]


def test_a_rule_that_fails_is_told_of_once_and_the_others_go_on(caplog):
    alerts = book(patience=1)
    alerts.rules["broken"] = lambda numbers: [Finding("y", numbers["y"], "there is no y")]
    begun = [alerts.evaluate(step, {"x": 2.0}) for step in range(3)]
    assert [[alert.rule for alert in each] for each in begun] == [["high"], [], []]
    assert caplog.text.count("the alert rule 'broken' failed") == 1
    assert [alert.rule for alert in alerts.evaluate(3, {"x": 2.0, "y": 1.0})] == ["broken"]
    assert caplog.text.count("KeyError") == 1


def test_numbers_of_ones_own_need_no_others(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with TrainingMonitor(model, optimizer, {"log_dir": str(tmp_path)}) as monitor:
        for tag in (
            "alignment/text_vs_image/diagonal_similarity",
            "ema/update_magnitude",
            "masking/repeated_batches",
        ):
            monitor.log({tag: 0.5})
    assert monitor.latest["ema/update_magnitude"] == 0.5


@pytest.mark.parametrize("spike", [101, 130, 199, 200])
def test_a_spike_at_any_step_between_two_logs_is_an_alert(tmp_path, spike):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    generator = torch.Generator().manual_seed(0)
    with TrainingMonitor(model, optimizer, {"log_dir": str(tmp_path)}) as monitor:
        for step in range(201):
            noise = 0.01 * torch.randn((), generator=generator).item()
            monitor.step(samples=1, losses=1.0 + noise + (10.0 if step == spike else 0.0))
    assert [(alert.step, alert.rule) for alert in monitor.alerts] == [(200, "loss_spike")]


def test_a_rules_state_is_written_once_a_step(tmp_path):
    model = nn.Linear(2, 2)
    config = {"log_dir": str(tmp_path), "log_frequency": 4}
    with TrainingMonitor(model, torch.optim.SGD(model.parameters(), lr=0.1), config) as monitor:
        for _ in range(7):
            monitor.step(samples=1, losses=0.5)
        monitor.end_epoch()
        monitor.log({"val/loss": 0.5})
    records = [r for r in read_jsonl(tmp_path / "metrics" / "hjepa_default.jsonl") if "step" in r]
    seen = [(r["step"], tag) for r in records for tag in r if tag.startswith("alerts/")]
    assert (6, "alerts/nonfinite") in seen
    assert len(seen) == len(set(seen))
