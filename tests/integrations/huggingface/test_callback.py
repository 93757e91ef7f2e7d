"""MetricsCallback in one process: losses of every kind, evaluation, alerts, checkpoints, and a clean end."""

import importlib
import logging
import shutil
import sys

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from hjepa_dist_metrics import ConfigError, MissingExtraError
from hjepa_dist_metrics.integrations.huggingface import MetricsCallback
from hjepa_dist_metrics.sinks import read_jsonl
from tests.helpers.jobs import TIMED
from tests.integrations.huggingface import tiny


def written(directory, run="run"):
    found = {}
    for line in read_jsonl(directory / f"metrics/{run}.jsonl"):
        found.setdefault(line["step"], {}).update({k: v for k, v in line.items() if k != "wall_time"})
    return found


def series(directory, tag, run="run"):
    return {step: values[tag] for step, values in written(directory, run).items() if tag in values}


def untimed(values_of):
    return {
        step: {tag: value for tag, value in values.items() if not tag.startswith(TIMED)}
        for step, values in values_of.items()
    }


def trainer(directory, callbacks=(), network=None, data=None, **changed):
    return Trainer(
        network or tiny.model(),
        tiny.arguments(directory, **changed),
        train_dataset=tiny.sentences() if data is None else data,
        eval_dataset=tiny.sentences(5, seed=2),
        data_collator=tiny.collate,
        callbacks=list(callbacks),
    )


def callback(directory, watch=None, **changed):
    return MetricsCallback(tiny.config(directory, **changed), watch_features=watch)


def test_numbers_are_those_of_a_direct_computation_and_the_training_is_the_same(tmp_path):
    plain = trainer(tmp_path)
    plain.train()
    watched = trainer(tmp_path, [callback(tmp_path, tiny.LAYER)])
    watched.train()
    for a, b in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(a, b)
    expected = tiny.direct(4, 1, tiny.model(), tiny.sentences())
    tags = (
        "loss/total",
        "gradients/global_norm",
        "gradient/global_norm_after_clip",
        "collapse/effective_rank",
    )
    for tag, name in zip(tags, ("loss", "before", "after", "rank"), strict=True):
        assert list(series(tmp_path, tag).values()) == pytest.approx(expected[name], rel=1e-4), tag
    assert list(series(tmp_path, "learning_rate/base_lr").values()) == pytest.approx(expected["lr"])
    last = written(tmp_path)[3]
    assert last["performance/total_samples"] == 23
    assert all(
        last[f"performance/{name}_time_ms"] > 0 for name in ("data", "forward", "backward", "optimizer")
    )
    assert last["performance/tokens_per_second"] > 0
    assert {"train/loss", "train/lr", "train_epoch/loss"} <= set(last)


def test_without_clipping_the_norm_is_measured(tmp_path):
    watched = trainer(tmp_path, [callback(tmp_path)], max_grad_norm=0.0, max_steps=2)
    watched.train()
    norms = [log["grad_norm"] for log in watched.state.log_history if "grad_norm" in log]
    for when in ("before", "after"):
        found = list(series(tmp_path, f"gradient/global_norm_{when}_clip").values())
        assert found == pytest.approx(norms, rel=1e-5)
    assert set(series(tmp_path, "gradient/clipping_percentage").values()) == {0.0}


def test_the_trainer_is_left_as_it_was(tmp_path):
    plain, watched = trainer(tmp_path, max_steps=1), trainer(tmp_path, [callback(tmp_path)], max_steps=1)
    for one in (plain, watched):
        one.train()
    assert set(vars(watched)) == set(vars(plain))
    assert set(vars(watched.accelerator)) == set(vars(plain.accelerator))
    assert not watched.model.model.layers[1]._forward_hooks


class Classifier(nn.Module):
    """A model that knows nothing of the Trainer: its loss is the mean over the samples it gets."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Conv2d(3, 6, 2), nn.Linear(6, 4)

    def forward(self, images, labels=None):
        logits = self.head(self.encoder(images).mean(dim=(2, 3)))
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}


def pictures(count):
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(count, 3, 4, 4, generator=generator)
    return [{"images": image, "labels": i % 4} for i, image in enumerate(images)]


def stack(items):
    return {
        "images": torch.stack([item["images"] for item in items]),
        "labels": torch.tensor([item["labels"] for item in items]),
    }


@pytest.mark.parametrize("own_loss", [False, True], ids=["the model's loss", "a loss function"])
def test_a_loss_by_samples_is_averaged_over_micro_batches_of_uneven_size(tmp_path, own_loss):
    torch.manual_seed(0)
    network, data = Classifier(), pictures(8)  # batches of 3, 3 and 2

    def loss_function(outputs, labels, num_items_in_batch=None):
        return nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch

    with torch.no_grad():
        each = stack(data)
        total = nn.functional.cross_entropy(network(**each)["logits"], each["labels"]).item()
    given = tiny.arguments(tmp_path, max_steps=1, gradient_accumulation_steps=3, remove_unused_columns=False)
    watched = Trainer(
        network,
        given,
        train_dataset=data,
        data_collator=stack,
        compute_loss_func=loss_function if own_loss else None,
        callbacks=[callback(tmp_path, {"pixels": "encoder"})],
    )
    watched.train()
    assert series(tmp_path, "loss/total")[0] == pytest.approx(total, rel=1e-6)
    assert series(tmp_path, "collapse/pixels_effective_rank")[0] > 1


def test_labels_make_probes_of_watched_features(tmp_path):
    """Of several micro-batches of a step the labels come together, as the features do."""
    torch.manual_seed(0)
    given = tiny.arguments(tmp_path, max_steps=4, gradient_accumulation_steps=4, remove_unused_columns=False)
    metrics = callback(tmp_path, {"pixels": "encoder"})
    Trainer(Classifier(), given, train_dataset=pictures(48), data_collator=stack, callbacks=[metrics]).train()
    rows = list(series(tmp_path, "probe/pixels_linear_rows").values())
    assert 24 < rows[-1] < 48  # of four steps of twelve samples, what is not held out
    assert all(0 <= value <= 1 for value in series(tmp_path, "probe/pixels_knn_top1").values())


def test_evaluations_are_written_also_those_after_the_training(tmp_path):
    watched = trainer(tmp_path, [callback(tmp_path)], eval_strategy="steps", eval_steps=2)
    watched.train()
    by_step = {log["step"] - 1: log["eval_loss"] for log in watched.state.log_history if "eval_loss" in log}
    assert series(tmp_path, "eval/loss") == series(tmp_path, "val/loss") == pytest.approx(by_step)
    assert set(by_step) == {1, 3}
    after = watched.evaluate(tiny.sentences(4, seed=9), metric_key_prefix="eval_test")
    assert series(tmp_path, "eval/test_loss") == {3: pytest.approx(after["eval_test_loss"])}
    assert not [tag for tag in written(tmp_path)[3] if "per_second" in tag and tag.startswith("eval")]


def test_what_other_trainers_log_is_written(tmp_path):
    class Rewarding(Trainer):
        def log(self, logs, start_time=None):
            super().log({**logs, "rewards/mean": 0.5, "note": "text"}, start_time)

    watched = Rewarding(
        tiny.model(),
        tiny.arguments(tmp_path, max_steps=2),
        train_dataset=tiny.sentences(),
        data_collator=tiny.collate,
        callbacks=[callback(tmp_path)],
    )
    watched.train()
    assert series(tmp_path, "train/rewards/mean") == {0: 0.5, 1: 0.5}
    assert not {tag for values in written(tmp_path).values() for tag in values} & {
        "train/grad_norm",
        "train/runtime",
        "train/train_runtime",
        "train/note",
    }


def test_an_alert_ends_the_training(tmp_path, caplog):
    stop = callback(tmp_path, alerts={"stop_on": ["nonfinite"]})
    watched = trainer(tmp_path, [stop], learning_rate=1e30, max_grad_norm=1e30, max_steps=12)
    with caplog.at_level(logging.WARNING):
        watched.train()
    assert watched.state.global_step < 6
    assert "nonfinite" in caplog.text


class Interrupt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("with_metrics", [True, False])
def test_resume_with_the_trainers_checkpoint(tmp_path, caplog, with_metrics):
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    trainer(whole, [callback(whole, tiny.LAYER)], **saving).train()
    broken = trainer(cut, [callback(cut, tiny.LAYER), Interrupt()], **saving)
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    if not with_metrics:
        (cut / "checkpoint-2/metrics_state.pt").unlink()
    trainer(cut, [callback(cut, tiny.LAYER)], **saving).train(resume_from_checkpoint=True)
    expected, found = written(whole), written(cut)
    if with_metrics:
        assert untimed(found) == untimed(expected)
        assert found[3]["performance/total_samples"] == expected[3]["performance/total_samples"] == 23
    else:
        assert found[3]["loss/total"] == expected[3]["loss/total"]
        assert "has no metrics_state.pt" in caplog.text


def test_a_copied_checkpoint_goes_on_under_its_runs_name(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    for directory in ("first", "second"):
        trainer(tmp_path / directory, [callback(tmp_path)], **saving).train()
    shutil.copytree(tmp_path / "second/checkpoint-2", tmp_path / "copy")
    trainer(tmp_path / "third", [callback(tmp_path)]).train(resume_from_checkpoint=str(tmp_path / "copy"))
    assert set(written(tmp_path, "run-2")) == {0, 1, 2, 3}
    assert set(written(tmp_path)) == {0, 1}


def test_a_training_that_failed_can_be_started_again(tmp_path):
    metrics = callback(tmp_path)
    watched = trainer(tmp_path, [metrics, Interrupt()])
    with pytest.raises(KeyboardInterrupt):
        watched.train()
    watched.remove_callback(Interrupt)
    watched.train()
    assert set(written(tmp_path, "run-2")) == {0, 1, 2, 3}


def test_names_and_cadence_come_from_the_arguments(tmp_path):
    metrics = MetricsCallback({"log_dir": str(tmp_path)})
    trainer(tmp_path / "my_model", [metrics], max_steps=5, logging_steps=2).train()
    assert set(series(tmp_path, "loss/total", "my_model")) == {0, 2, 4}


def test_a_module_that_is_not_there_is_an_error(tmp_path):
    watched = trainer(tmp_path, [callback(tmp_path, ["model.layer.1"])])
    with pytest.raises(ConfigError, match=r"'model\.layer\.1'.*'model\.layers'"):
        watched.train()


def test_outside_of_a_training_it_says_so(tmp_path):
    metrics = callback(tmp_path)
    with pytest.raises(ConfigError, match=r"Trainer\.train"):
        metrics.on_train_begin(None, None, None)
    with pytest.raises(ConfigError, match=r"Trainer\.train"):
        _ = metrics.monitor


def test_without_transformers_it_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("hjepa_dist_metrics.integrations.hugging")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hjepa-dist-metrics\[huggingface\]'"):
        importlib.import_module("hjepa_dist_metrics.integrations.huggingface")
