"""What a training script adds to its monitor: rules, second names, numbers of the epoch."""

import pytest
import torch

from hjepa_dist_metrics import ConfigError, Evidence, ModalityAlignment, TrainingMonitor, WeightedMean
from tests.monitor.test_monitor import config, problem, series


def shrinking(numbers):
    """Find a margin below 1; None where there is no margin."""
    value = numbers.get("mine/margin")
    if value is None:
        return None
    return [Evidence("mine/margin", value, "below 1")] if value < 1 else []


def test_a_rule_of_ones_own_watches_logged_and_merged_values(tmp_path):
    settings = config(tmp_path, alerts={"patience": 2, "recovery": 1})
    with TrainingMonitor(*problem(), settings) as monitor:
        monitor.add_rule("margin", shrinking)
        margin = WeightedMean("mine/margin")
        monitor.step(samples=1)
        monitor.log({"mine/margin": 0.5})
        monitor.add_metric("margin", margin)
        margin.update(0.25)
        monitor.step(samples=1)
        monitor.flush()
        (alert,) = monitor.alerts
        assert (alert.rule, alert.tag, alert.value) == ("margin", "mine/margin", 0.25)
        monitor.log({"val/other": 1.0}, step=1)  # says nothing about the rule
        assert monitor.latest["alerts/margin"] == 1.0
        monitor.log({"mine/margin": 2.0}, step=2)
        assert monitor.latest["alerts/margin"] == 0.0
        with pytest.raises(ConfigError, match="finding named 'margin' already"):
            monitor.add_rule("margin", shrinking)


def test_second_names_add_to_the_short_ones(tmp_path):
    with TrainingMonitor(*problem(), config(tmp_path)) as monitor:
        monitor.add_alias({"learning_rate/base_lr": "optimization/lr"})
        monitor.step(samples=1, losses=1.0)
    assert series(tmp_path, "optimization/lr") == series(tmp_path, "train/lr") == {0: 0.1}


def test_a_metric_of_the_epoch_is_written_at_its_end(tmp_path):
    with TrainingMonitor(*problem(), config(tmp_path)) as monitor:
        length = WeightedMean("mine/length")
        monitor.add_metric("length", length, "epoch")
        for value in (2.0, 4.0):
            length.update(value)
            monitor.step(samples=1)
        monitor.end_epoch()
        with pytest.raises(ConfigError, match="cadence family"):
            monitor.add_metric("other", WeightedMean("x"), "nothing")
    assert series(tmp_path, "mine/length") == {1: 3.0}


def test_modalities_that_do_not_match_raise_alerts(tmp_path):
    settings = config(tmp_path, alerts={"patience": 1, "patience_steps": 0})
    with TrainingMonitor(*problem(), settings) as monitor:
        metric = ModalityAlignment(["text", "image"])
        generator = torch.Generator().manual_seed(0)
        metric.update({name: torch.randn(60, 8, generator=generator) for name in ("text", "image")})
        monitor.log(metric.compute(), step=0)
        (alert,) = [alert for alert in monitor.alerts if alert.rule == "no_diagonal"]
        assert alert.tag == "alignment/text_vs_image/diagonal_contrast"
        assert monitor.latest["alerts/no_diagonal"] == 1.0
