import dataclasses

import numpy as np
import pytest
import torch

from hjepa_dist_metrics import ConfigError, LoggingConfig, ProcessContext
from hjepa_dist_metrics.reference import checkpoint
from hjepa_dist_metrics.reference.arguments import RunConfig, parse
from hjepa_dist_metrics.reference.hjepa import DataConfig, ModelConfig
from hjepa_dist_metrics.reference.hjepa.workload import HJEPAWorkload
from hjepa_dist_metrics.reference.main import main
from hjepa_dist_metrics.reference.schedule import learning_rate
from hjepa_dist_metrics.reference.trainer import Trainer
from hjepa_dist_metrics.reference.training import TrainingConfig
from hjepa_dist_metrics.sinks import read_jsonl

SMALL = [
    *("--model.embed_dim", "16", "--model.predictor_dim", "16", "--model.num_heads", "2"),
    *("--model.depth", "1", "--model.predictor_depth", "1", "--training.probe_every_epochs", "0"),
]


def small(tmp_path, *more):
    return parse([*SMALL, "--logging.log_dir", str(tmp_path), "--logging.log_frequency", "1", *more])


def run(config: RunConfig):
    context = ProcessContext.current()
    workload = HJEPAWorkload(config.model, config.data, config.training, context)
    return Trainer(workload, config.training, config.logging, context).run()


def series(tmp_path, tag):
    found = read_jsonl(tmp_path / "metrics" / "hjepa_default.jsonl")
    return {line["step"]: line[tag] for line in found if tag in line}


def test_schedule_rises_and_falls():
    rates = [learning_rate(step, 100, 1.0, 0.1, 0.1) for step in range(100)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(100, 100, 1.0, 0.1, 0.1) == pytest.approx(0.1)
    assert learning_rate(0, 10, 1.0, 0.1, 0.0) == 1.0


def test_a_short_run_writes_validation_and_training(tmp_path):
    outcome = run(small(tmp_path, "--training.max_steps", "3"))
    assert outcome.steps == 3
    assert sorted(series(tmp_path, "loss/total")) == [0, 1, 2]
    assert sorted(series(tmp_path, "val/knn_accuracy")) == [0, 2]
    assert sorted(series(tmp_path, "val/loss")) == [0, 2]
    momentum = list(series(tmp_path, "train/ema_momentum").values())
    assert momentum == sorted(momentum)
    assert momentum[0] == pytest.approx(0.98)
    assert outcome.latest["val/knn_accuracy"] > 0.1


def test_accumulation_reports_the_loss_that_it_optimises(tmp_path):
    """Two micro-batches of 64: the logged loss is the mean of theirs."""
    outcome = run(
        small(
            tmp_path,
            "--training.max_steps",
            "1",
            "--training.accumulation_steps",
            "2",
            "--data.batch_size",
            "128",
        )
    )
    config = small(tmp_path, "--training.accumulation_steps", "2", "--data.batch_size", "128")
    workload = HJEPAWorkload(config.model, config.data, config.training, ProcessContext.current())
    with torch.no_grad():
        batches = iter(workload.batches(0, 0))
        losses = [
            workload.forward(workload.model, next(batches), 0).losses["loss_h0"].item() for _ in range(2)
        ]
    assert outcome.latest["loss/h0"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_resume_equals_a_run_without_a_break(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    common = ["--training.epochs", "3", "--data.batch_size", "700"]
    run(small(whole, *common))
    saves = ["--training.checkpoint_dir", str(tmp_path / "c"), "--training.checkpoint_every_epochs", "1"]
    run(small(parts, *common, *saves, "--training.max_steps", "2"))
    outcome = run(small(parts, *common, *saves, "--training.resume", "true"))
    assert outcome.steps == 6
    for tag in ("loss/total", "loss/h1", "gradient/clipping_percentage", "train/ema_momentum"):
        assert series(parts, tag) == pytest.approx(series(whole, tag), rel=1e-6), tag


def test_resume_without_a_checkpoint_starts_anew(tmp_path):
    outcome = run(
        small(
            tmp_path,
            *("--training.max_steps", "1", "--training.checkpoint_dir", str(tmp_path / "none")),
            *("--training.resume", "true"),
        )
    )
    assert outcome.steps == 1


def test_a_broken_checkpoint_is_named(tmp_path):
    (tmp_path / "step_00000003.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ConfigError, match=r"step_00000003\.pt"):
        checkpoint.load(checkpoint.newest(tmp_path), torch.device("cpu"))


def test_newest_checkpoint_by_step(tmp_path):
    assert checkpoint.newest(tmp_path / "missing") is None
    for step in (2, 10, 9):
        checkpoint.save(tmp_path, step, {"step": step})
    assert checkpoint.newest(tmp_path).name == "step_00000010.pt"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--training.epoch", "3"],
            "unknown key 'training.epoch': the nearest valid one is 'training.epochs'",
        ),
        (["--training.epochs", "many"], "training.epochs"),
        (["--training.epochs", "0"], "training.epochs is 0; allowed: 1 or more"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--model.num_hierarchies", "4", "--model.hierarchy_weights", "[1,1,1,1]"], "num_hierarchies"),
        (["--data.batch_size", "5000"], "at most 1400"),
        (["--data.kind", "image_folder", "--data.root", "."], "image"),
    ],
)
def test_bad_input_is_one_line_and_a_non_zero_exit(arguments, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("train.py: error: ")
    assert expected in line


def test_yaml_keys_are_checked_like_arguments(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("training: {epoc: 3}")
    with pytest.raises(ConfigError, match=r"unknown key 'training\.epoc'.*'training\.epochs'"):
        parse(["--config", str(path)])


def test_later_arguments_win_over_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("training: {epochs: 7, seed: 4}\nlogging: {log_frequency: 3}")
    config = parse(["--config", str(path), "--training.epochs", "9"])
    assert (config.training.epochs, config.training.seed, config.logging.log_frequency) == (9, 4, 3)


def test_settings_are_flat_and_plain():
    settings = parse([]).settings()
    assert settings["model.ema.momentum_start"] == 0.98
    assert settings["data.root"] == "None"
    assert not any(key.startswith("logging") for key in settings)


def test_command_line_defaults_are_the_dataclasses():
    expected = RunConfig("hjepa", ModelConfig(), DataConfig(), TrainingConfig(), LoggingConfig())
    assert dataclasses.asdict(parse([])) == dataclasses.asdict(expected)


def test_workload_comes_from_the_file_or_the_command_line(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("workload: hjepe\n")
    with pytest.raises(ConfigError, match=r"unknown workload 'hjepe'.*nearest: 'hjepa'"):
        parse(["--config", str(path)])
    assert parse(["--config", str(path), "--workload", "hjepa"]).workload == "hjepa"
