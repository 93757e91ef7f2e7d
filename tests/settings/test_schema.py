"""The logging section: every way to give it, and errors that say what to do."""

import argparse
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.settings.schema import (
    AlertsConfig,
    CadenceConfig,
    LoggingConfig,
    TensorBoardConfig,
    from_mapping,
    to_dict,
)

SEED_YAML = """
logging:
  experiment_name: "hjepa_default"
  log_dir: "results/logs"
  log_frequency: 100
  wandb:
    enabled: true
    project: "h-jepa"
    entity: null
    tags: ["baseline", "vit-base"]
  tensorboard:
    enabled: true
"""


def test_the_quick_references_yaml_is_read_as_it_is():
    config = from_mapping(yaml.safe_load(SEED_YAML))
    assert (config.experiment_name, config.log_dir, config.log_frequency) == (
        "hjepa_default",
        "results/logs",
        100,
    )
    assert (config.wandb.enabled, config.wandb.tags) == (True, ["baseline", "vit-base"])
    assert config.tensorboard.enabled


def test_nothing_gives_the_defaults():
    assert from_mapping() == from_mapping({}) == from_mapping({"model": {"depth": 4}}) == LoggingConfig()
    assert from_mapping({"logging": None}) == LoggingConfig()


@dataclasses.dataclass
class RunConfig:
    logging: LoggingConfig
    training: dict


EXPECTED = LoggingConfig(log_frequency=7, cadence=CadenceConfig(system=3))


@pytest.mark.parametrize(
    "source",
    [
        EXPECTED,
        {"log_frequency": 7, "cadence": {"system": 3}},
        {"log_frequency": 7, "cadence": CadenceConfig(system=3)},
        {"logging": {"log_frequency": 7, "cadence": {"system": 3}}, "model": {"anything": 1}},
        {"logging": EXPECTED},
        RunConfig(EXPECTED, {}),
        SimpleNamespace(logging=SimpleNamespace(log_frequency=7, cadence=argparse.Namespace(system=3))),
        to_dict(EXPECTED),
    ],
    ids=["config", "section", "mixed", "run", "run with object", "dataclass", "namespace", "round trip"],
)
def test_every_source_gives_the_same(source):
    assert from_mapping(source) == EXPECTED


@pytest.mark.parametrize(
    ("section", "parts"),
    [
        ({"log_frequncy": 10}, ["logging.log_frequncy", "did you mean logging.log_frequency?"]),
        (
            {"cadence": {"scalar": 1}},
            ["logging.cadence.scalar", "did you mean logging.cadence.scalars?", "figures"],
        ),
        ({"xyzzy": 1}, ["unknown key logging.xyzzy", "valid keys: experiment_name"]),
        ({"log_frequency": "ten"}, ["logging.log_frequency", "'ten'", "str", "expected int"]),
        ({"log_frequency": 1.5}, ["logging.log_frequency", "1.5", "expected int"]),
        ({"log_frequency": True}, ["logging.log_frequency", "True", "expected int"]),
        ({"log_frequency": 0}, ["logging.log_frequency", "0", "1 or more"]),
        ({"log_dir": None}, ["logging.log_dir", "None", "expected str"]),
        ({"log_dir": ""}, ["logging.log_dir", "a directory"]),
        ({"experiment_name": " "}, ["logging.experiment_name", "it is empty", "a relative name"]),
        ({"experiment_name": "../x"}, ["logging.experiment_name", "leads out of the log directory"]),
        ({"experiment_name": "x" * 300}, ["logging.experiment_name", "too long (300 bytes)"]),
        ({"experiment_name": "ж" * 150}, ["logging.experiment_name", "too long (300 bytes)"]),
        ({"experiment_name": "a\0b"}, ["logging.experiment_name", "control characters"]),
        ({"experiment_name": "a\x1b[31m"}, ["logging.experiment_name", "control characters"]),
        ({"experiment_name": "a\udc80"}, ["logging.experiment_name", "half of a surrogate pair"]),
        ({"log_dir": "a\0b"}, ["logging.log_dir", "a directory"]),
        ({"sync": "sometimes"}, ["logging.sync", "'sometimes'", "'background' or 'inline'"]),
        ({"sync_timeout": -1}, ["logging.sync_timeout", "-1", "more than 0"]),
        ({"tensorboard": True}, ["logging.tensorboard", "True", "section with keys enabled, flush_secs"]),
        ({"tensorboard": {"enabled": "yes"}}, ["logging.tensorboard.enabled", "'yes'", "true or false"]),
        ({"tensorboard": {"flush_secs": 0}}, ["logging.tensorboard.flush_secs", "more than 0"]),
        ({"wandb": {"tags": ["a", 3]}}, ["logging.wandb.tags", "['a', 3]", "a list of str"]),
        ({"wandb": {"entity": 5}}, ["logging.wandb.entity", "str or null"]),
        ({"wandb": {"mode": "loud"}}, ["logging.wandb.mode", "'online' or 'offline'"]),
        ({"cadence": {"figures": -1}}, ["logging.cadence.figures", "-1", "0 (never)"]),
        (
            {"alerts": {"stop_on": ["colapse"]}},
            ["logging.alerts.stop_on", "'colapse'", "did you mean 'collapse'?"],
        ),
        ({"alerts": {"stop_on": "collapse"}}, ["logging.alerts.stop_on", "a list of str"]),
        ({"alerts": {"patience": 0}}, ["logging.alerts.patience", "1 or more"]),
        ({"alerts": {"recovery": 0}}, ["logging.alerts.recovery", "1 or more"]),
        ({"dashboards": 3}, ["logging.dashboards", "a list of str or 'default'"]),
        ({1: 2}, ["unknown key logging.1"]),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_valid(section, parts):
    with pytest.raises(ConfigError) as caught:
        from_mapping(section)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", [3, "results", [1, 2]])
def test_something_else_is_refused(source):
    with pytest.raises(ConfigError, match="expected a mapping, a LoggingConfig"):
        from_mapping(source)


def test_an_int_serves_as_a_float_and_a_tuple_as_a_list():
    config = from_mapping({"sync_timeout": 5, "dashboards": ("loss",)})
    assert isinstance(config.sync_timeout, float)
    assert config.dashboards == ["loss"]


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        LoggingConfig().log_dir = "elsewhere"


def test_cadences_by_default_are_the_quick_references_table():
    cadences = LoggingConfig().cadences(steps_per_epoch=37)
    assert dataclasses.astuple(cadences) == (100, 1000, 1000, 5000, 370)
    assert LoggingConfig(log_frequency=10).cadences().system == 100


def test_cadences_can_be_set_and_switched_off():
    config = from_mapping({"log_frequency": 10, "cadence": {"histograms": 0, "figures": 3}})
    assert dataclasses.astuple(config.cadences()) == (10, 100, None, 3, 100)
    every = config.cadences().every()
    assert [step for step in range(25) if every["scalars"].due(step)] == [0, 10, 20]
    assert not any(every["histograms"].due(step) for step in range(25))


def test_jsonargparse_builds_a_command_line_from_it(tmp_path: Path):
    jsonargparse = pytest.importorskip("jsonargparse", reason="jsonargparse (extra `train`) is not installed")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--logging", type=LoggingConfig, default=LoggingConfig())
    file = tmp_path / "run.yaml"
    file.write_text(SEED_YAML)
    overrides = [
        "--logging.cadence.scalars",
        "10",
        "--logging.dashboards",
        "[loss]",
        "--logging.alerts.patience=5",
    ]
    parsed = parser.parse_args(["--config", str(file), *overrides])
    config = from_mapping(parsed)
    assert (config.cadence, config.dashboards) == (CadenceConfig(scalars=10), ["loss"])
    assert (config.alerts, config.tensorboard) == (AlertsConfig(patience=5), TensorBoardConfig())
    assert config.wandb.tags == ["baseline", "vit-base"]


def test_intervals_are_steps_and_epochs():
    config = from_mapping({"log_interval": 10, "histogram_interval": 5})
    cadences = config.cadences(steps_per_epoch=11)
    assert (cadences.scalars, cadences.histograms, cadences.representations) == (10, 55, 100)
    assert from_mapping({"log_frequency": 7}).cadences(11).histograms == 70
    with pytest.raises(ConfigError, match=r"logging\.histogram_interval is 5.*steps_per_epoch"):
        config.cadences()
    for key in ("log_interval", "histogram_interval"):
        with pytest.raises(ConfigError, match=rf"logging\.{key} is 0"):
            from_mapping({key: 0})
