"""The workload with modalities of a user's own, its command line, and a run that is resumed."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from hjepa_dist_metrics import ConfigError, LoggingConfig, ProcessContext
from hjepa_dist_metrics.reference.arguments import parse
from hjepa_dist_metrics.reference.main import main, train
from hjepa_dist_metrics.reference.multimodal.config import ModelConfig
from hjepa_dist_metrics.reference.multimodal.modality import Modality, PairedData
from hjepa_dist_metrics.reference.multimodal.workload import MultimodalWorkload
from hjepa_dist_metrics.reference.trainer import Trainer
from hjepa_dist_metrics.reference.training import TrainingConfig
from hjepa_dist_metrics.sinks import read_jsonl

TRAIN, VAL, WIDTH = 96, 40, 10


def seen(name, place, others_content=False):
    """A modality that shows a linear view of the sample's content; each has inputs of a width of its own."""
    generator = torch.Generator().manual_seed(place)
    content = torch.randn(
        TRAIN + VAL, 4, generator=torch.Generator().manual_seed(99 + place * others_content)
    )
    view = content @ torch.randn(4, WIDTH + place, generator=generator)
    return Modality(
        name,
        lambda dim: nn.Sequential(nn.Linear(WIDTH + place, 32), nn.GELU(), nn.Linear(32, dim)),
        lambda indices, epoch: view[indices],
    )


def run(data, tmp_path, context=None, epochs=12, **logging):
    training = TrainingConfig(epochs=epochs, learning_rate=1e-2, probe_every_epochs=2, clip_grad=5.0)
    settings = {"experiment_name": "own", "log_dir": str(tmp_path), "log_interval": 1, **logging}
    context = context or ProcessContext.current()
    workload = MultimodalWorkload(ModelConfig(embed_dim=8), data, 32, training, context)
    return Trainer(workload, training, LoggingConfig(**settings), context).run()


@pytest.mark.parametrize("names", [["left eye", "right-eye"], ["radar", "lidar", "camera", "map"]])
def test_any_modalities_of_a_users_own_are_trained_and_told(names, tmp_path):
    data = PairedData([seen(name, place) for place, name in enumerate(names)], TRAIN, VAL)
    outcome = run(data, tmp_path)
    first, last = outcome.first, outcome.latest
    a, b = names[:2]
    assert last[f"loss/train/{a}_{b}"] < 0.5 * first[f"loss/train/{a}_{b}"]
    assert (
        last[f"alignment/{a}_vs_{b}/recall_at_1_{a}_to_{b}"] > 0.4 > 10 * last["alignment/recall_at_1_chance"]
    )
    assert {
        f"embeddings/{name}/{key}" for name in (*names, "global") for key in ("mean", "std", "norm")
    } <= set(last)
    pairs = sum(tag.endswith("/diagonal_similarity") for tag in last)
    assert pairs == len(names) * (len(names) - 1) // 2
    assert not any(tag.startswith("val/same_class") for tag in last)  # there are no labels
    assert outcome.alerts == []
    assert outcome.failures == []


def test_modalities_that_have_nothing_in_common_raise_an_alert(tmp_path):
    data = PairedData([seen("sea", 0), seen("sky", 1, others_content=True)], TRAIN, VAL)
    outcome = run(data, tmp_path, epochs=8)
    assert any("no_diagonal" in alert for alert in outcome.alerts)


def test_a_wrong_batch_of_a_users_own_is_one_error(tmp_path):
    short = Modality("short", lambda dim: nn.Linear(3, dim), lambda indices, epoch: torch.ones(2, 3))
    with pytest.raises(ConfigError, match=r"inputs of every modality, got .*'short': 2"):
        run(PairedData([seen("a", 0), short], TRAIN, VAL), tmp_path)
    other_width = Modality("wide", lambda dim: nn.Linear(3, dim + 1), lambda i, epoch: torch.ones(len(i), 3))
    with pytest.raises(ConfigError, match=r"one space of one width.*'wide': \[.*, 9\]"):
        run(PairedData([seen("a", 0), other_width], TRAIN, VAL), tmp_path)


class Untraceable(nn.Module):
    """An encoder that looks at its numbers: a tracer cannot follow."""

    def __init__(self, dim):
        super().__init__()
        self.layer = nn.Linear(WIDTH, dim)

    def forward(self, rows):
        if torch.jit.is_tracing():
            raise RuntimeError("no tracing here")
        return self.layer(rows)


def test_an_encoder_that_cannot_be_traced_costs_the_graph_alone(tmp_path, caplog):
    odd = dataclasses.replace(seen("odd", 0), encoder=Untraceable)
    outcome = run(PairedData([odd, seen("even", 1)], TRAIN, VAL), tmp_path, epochs=1)
    assert outcome.steps == TRAIN // 32
    assert "no graph: " in caplog.text
    assert "no tracing here" in caplog.text


def small(tmp_path, *more):
    return parse(
        [
            *("--workload", "multimodal", "--model.embed_dim", "16", "--data.batch_size", "350"),
            *("--logging.log_dir", str(tmp_path), "--logging.experiment_name", "run", *more),
        ]
    )


def series(folder, tag):
    return {line["step"]: line[tag] for line in read_jsonl(folder / "metrics/run.jsonl") if tag in line}


def test_retrieval_of_held_out_digits_rises_far_above_chance(tmp_path):
    outcome = train(small(tmp_path, "--training.epochs", "5", "--data.batch_size", "100"))
    first, last = outcome.first, outcome.latest
    found = [tag for tag in last if tag.startswith("val/same_class_")]
    assert len(found) == 6
    for tag in found:
        assert first[tag] < 0.3, tag
        assert last[tag] > 0.7, tag  # of ten classes
    for a, b in (("text", "image"), ("text", "audio"), ("image", "audio")):
        prefix = f"alignment/{a}_vs_{b}/"
        assert last[prefix + "diagonal_similarity"] > last[prefix + "mean_similarity"] + 0.2
        assert first[f"{prefix}recall_at_5_{a}_to_{b}"] < 2 * last["alignment/recall_at_5_chance"]
        assert last[f"{prefix}recall_at_5_{a}_to_{b}"] > 4 * last["alignment/recall_at_5_chance"]
    assert outcome.alerts == []


def test_epochs_mean_and_scatter_are_those_of_its_steps(tmp_path):
    train(small(tmp_path, "--training.epochs", "2", "--logging.log_interval", "1"))
    losses = np.array(list(series(tmp_path, "loss/train/total").values())).reshape(2, 4)
    means, stds = (list(series(tmp_path, f"loss/train/epoch_{key}").values()) for key in ("mean", "std"))
    np.testing.assert_allclose(means, losses.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(stds, losses.std(axis=1), rtol=1e-4)
    assert series(tmp_path, "optimization/lr") == series(tmp_path, "train/lr")
    assert series(tmp_path, "optimization/grad_norm") == series(tmp_path, "gradient/global_norm_before_clip")


def test_intervals_on_the_command_line(tmp_path):
    train(small(tmp_path, "--training.epochs", "2", "--logging.log_interval", "3"))
    assert sorted(series(tmp_path, "embeddings/text/std")) == [0, 3, 6, 7]  # and the last step


def test_accumulated_micro_steps_log_the_mean_of_their_losses(tmp_path):
    config = small(tmp_path, "--training.accumulation_steps", "2", "--training.max_steps", "1")
    outcome = train(config)
    assert outcome.latest["loss/train/total"] == pytest.approx(outcome.latest["loss/total"], rel=1e-6)


def test_resume_equals_a_run_without_a_break(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    common = ["--training.epochs", "2", "--logging.log_interval", "1"]
    train(small(whole, *common))
    saves = ["--training.checkpoint_dir", str(tmp_path / "c"), "--training.checkpoint_every_epochs", "1"]
    train(small(parts, *common, *saves, "--training.max_steps", "4"))
    train(small(parts, *common, *saves, "--training.resume", "true"))
    for tag in ("loss/train/total", "loss/train/epoch_std", "embeddings/audio/std", "loss/val/total"):
        got, expected = series(parts, tag), series(whole, tag)
        assert {step: got[step] for step in expected} == pytest.approx(expected, rel=1e-5), tag


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--logging.log_interval", "0"], "logging.log_interval is 0"),
        (["--log_interval", "5"], "nearest valid one is 'logging.log_interval'"),
        (["--model.temprature", "0.1"], "nearest valid one is 'model.temperature'"),
        (["--data.batch_size", "2000"], "at most 1400"),
    ],
)
def test_bad_input_is_one_line_and_a_non_zero_exit(arguments, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--workload", "multimodal", *arguments]) == 2
    assert expected in capsys.readouterr().err
