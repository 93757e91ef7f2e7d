"""MetricsCallback of Lightning in one process: ways to step, validation, checkpoints, alerts."""

import importlib
import math
import sys

import pytest
import torch
from torch import nn

from hjepa_dist_metrics import ConfigError, MissingExtraError
from hjepa_dist_metrics.integrations.lightning import MetricsCallback
from hjepa_dist_metrics.sinks import read_jsonl
from tests.helpers.jobs import TIMED
from tests.integrations.lightning import modules


def written(directory, run="run"):
    found = {}
    for line in read_jsonl(directory / f"metrics/{run}.jsonl"):
        found.setdefault(line["step"], {}).update({k: v for k, v in line.items() if k != "wall_time"})
    return found


def untimed(directory):
    return {
        step: {tag: value for tag, value in values.items() if not tag.startswith(TIMED)}
        for step, values in written(directory).items()
    }


def series(directory, tag, run="run"):
    return {step: values[tag] for step, values in written(directory, run).items() if tag in values}


def callback(directory, watch=None, exact_means=False, **changed):
    return MetricsCallback(
        modules.config(directory, **changed), watch_features=watch, exact_means=exact_means
    )


def fit(directory, module, callbacks=(), data=None, validation=None, ckpt_path=None, **changed):
    trainer = modules.trainer(directory, callbacks, **changed)
    loaders = [modules.loader(rows) for rows in (data or modules.samples(8), validation) if rows]
    trainer.fit(module, *loaders, ckpt_path=ckpt_path)
    return trainer


def direct(data, steps, clip=None, lr=0.1):
    """Return loss, and norm before and after clipping, of steps on the given rows, in float64."""
    module = modules.Classifier().double()
    seen = []
    for step in range(steps):
        rows = data[step]
        batch = torch.stack([x for x, _ in rows]).double(), torch.tensor([y for _, y in rows])
        loss = module.loss(batch)
        module.zero_grad()
        loss.backward()
        before = float(torch.cat([p.grad.flatten() for p in module.parameters()]).norm())
        if clip:
            clip(module.parameters())
        after = float(torch.cat([p.grad.flatten() for p in module.parameters()]).norm())
        with torch.no_grad():
            for parameter in module.parameters():
                parameter -= lr / (1 + step) * parameter.grad
        seen.append((loss.item(), before, after, lr / (1 + step)))
    return [list(column) for column in zip(*seen, strict=True)]


TAGS = (
    "loss/total",
    "gradient/global_norm_before_clip",
    "gradient/global_norm_after_clip",
    "learning_rate/base_lr",
)
CLIPPING = {
    "none": ({}, None),
    "norm": ({"gradient_clip_val": 0.1}, lambda p: nn.utils.clip_grad_norm_(p, 0.1)),
    "value": (
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        lambda p: nn.utils.clip_grad_value_(p, 0.01),
    ),
}


@pytest.mark.parametrize("clipping", CLIPPING)
def test_numbers_are_those_of_a_direct_computation_and_the_training_is_the_same(tmp_path, clipping):
    given, clip = CLIPPING[clipping]
    plain, watched = modules.Classifier(), modules.Classifier()
    fit(tmp_path, plain, **given)
    fit(tmp_path, watched, [callback(tmp_path, "body")], **given)
    for a, b in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)
    rows = modules.samples(8)
    expected = direct([rows[0:3], rows[3:6], rows[6:8]], 3, clip)
    for tag, values in zip(TAGS, expected, strict=True):
        assert list(series(tmp_path, tag).values()) == pytest.approx(values, rel=1e-4), tag
    flow = list(series(tmp_path, "gradients/global_norm").values())
    assert flow == pytest.approx(expected[1], rel=1e-4)
    last = written(tmp_path)[2]
    assert last["performance/total_samples"] == 8
    assert all(
        last[f"performance/{name}_time_ms"] > 0 for name in ("data", "forward", "backward", "optimizer")
    )
    assert set(series(tmp_path, "collapse/effective_rank")) == {0, 1, 2}
    assert "train_epoch/loss" in last


def test_accumulated_batches_of_uneven_size_are_one_step(tmp_path):
    rows = modules.samples(8)
    fit(tmp_path, modules.Classifier(lr=0.0), [callback(tmp_path)], rows, accumulate_grad_batches=2)
    expected = direct([rows[0:6], rows[6:8]], 2, lr=0.0)
    assert list(series(tmp_path, "loss/total").values()) == pytest.approx(expected[0], rel=1e-6)
    assert series(tmp_path, "performance/total_samples") == {0: 6, 1: 8}


@pytest.mark.parametrize("clip", [0.1, None])
def test_manual_optimization_with_two_optimizers(tmp_path, clip):
    plain, watched = modules.ByHand(clip), modules.ByHand(clip)
    fit(tmp_path, plain)
    fit(tmp_path, watched, [callback(tmp_path)])
    for a, b in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)
    rows = modules.samples(8)[:3]
    loss, before, *_ = direct([rows], 1)
    assert series(tmp_path, "loss/total")[0] == pytest.approx(loss[0], rel=1e-5)
    assert set(series(tmp_path, "learning_rate/param_group_1").values()) == {0.1}
    assert len(series(tmp_path, "gradients/global_norm")) == 3
    if clip is None:
        assert series(tmp_path, "gradient/global_norm_before_clip")[0] == pytest.approx(before[0], rel=1e-5)
    else:  # both layers are clipped, one after the other
        after = series(tmp_path, "gradient/global_norm_after_clip")[0]
        assert after == pytest.approx(math.hypot(clip, clip), rel=1e-4)


def test_a_jepa_in_a_few_lines(tmp_path):
    fit(tmp_path, modules.JEPA(), [callback(tmp_path)], modules.masked(9), modules.masked(4, seed=2))
    values = written(tmp_path)[2]
    assert values["masking/mask_ratio"] == pytest.approx(0.4)
    assert values["ema/momentum_current"] == 0.9
    assert values["prediction/level0_num_tokens"] == 6
    assert values["collapse/num_samples"] == 15
    assert values["ema/parameter_divergence"] > 0
    batches = modules.masked(4, seed=2)
    with torch.no_grad():  # what the validation saw at the end of the epoch
        module = modules.JEPA()
        fit(tmp_path / "again", module, (), modules.masked(9))
        expected = module.context_encoder(torch.stack([b["tokens"] for b in batches])).square().mean().item()
    assert values["val/loss"] == pytest.approx(expected, rel=1e-6)


def test_losses_by_name_are_written_by_name(tmp_path):
    class Levels(modules.Classifier):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            return {"loss": loss, "loss_h0": loss / 4, "loss_h1": 3 * loss / 4, "loss_extra": loss.detach()}

    fit(tmp_path, Levels(), [callback(tmp_path)])
    values = written(tmp_path)[0]
    assert values["loss/h1"] == pytest.approx(3 * values["loss/h0"])
    assert values["loss/extra"] == pytest.approx(values["loss/total"])


def test_values_that_the_module_logs_are_averaged_by_samples(tmp_path):
    rows, validation = modules.samples(8), modules.samples(4, seed=5)
    module = modules.Classifier(lr=0.0)
    watched = callback(tmp_path, exact_means=True, log_frequency=10)
    fit(tmp_path, module, [watched], rows, validation)
    whole = torch.stack([x for x, _ in rows]), torch.tensor([y for _, y in rows])
    seen = torch.stack([x for x, _ in validation]), torch.tensor([y for _, y in validation])
    assert series(tmp_path, "val/loss")[2] == pytest.approx(module.loss(seen).item(), rel=1e-6)
    rest = modules.loader(rows[3:], 3)
    expected = sum(len(y) * module.loss((x, y)).item() for x, y in rest) / 5
    assert series(tmp_path, "error")[2] == pytest.approx(expected, rel=1e-6)  # since the log of step 0
    assert "val/largest" not in written(tmp_path)[2]
    assert module.loss(whole).item() == pytest.approx(
        (3 * series(tmp_path, "error")[0] + 5 * series(tmp_path, "error")[2]) / 8, rel=1e-6
    )
    assert "log" not in vars(module)


@pytest.mark.parametrize("kind", [modules.Classifier, modules.ByHand])
def test_resume_from_lightnings_checkpoint(tmp_path, kind):
    from lightning.pytorch.callbacks import ModelCheckpoint

    rows = modules.samples(15)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fit(whole, kind(), [callback(whole, "body")], rows, max_epochs=2)

    def saving():
        return ModelCheckpoint(dirpath=cut, filename="{epoch}", save_on_train_epoch_end=True)

    saves = {"enable_checkpointing": True}
    fit(cut, kind(), [callback(cut, "body"), saving()], rows, max_epochs=1, **saves)
    path = str(cut / "epoch=0.ckpt")
    fit(cut, kind(), [callback(cut, "body"), saving()], rows, max_epochs=2, ckpt_path=path, **saves)
    assert untimed(cut) == untimed(whole)
    totals = [series(place, "performance/total_samples") for place in (whole, cut)]
    assert totals[0] == totals[1]


def test_an_alert_ends_the_training(tmp_path):
    stop = callback(tmp_path, alerts={"stop_on": ["nonfinite"]})
    trainer = fit(tmp_path, modules.Classifier(lr=1e38), [stop], modules.samples(60))
    assert trainer.global_step < 10


def test_a_training_that_failed_is_closed_and_can_be_started_again(tmp_path):
    class Failing(modules.Classifier):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if batch_idx == 1:
                raise ZeroDivisionError

    watched, module = callback(tmp_path), Failing()
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, module, [watched])
    assert set(series(tmp_path, "loss/total")) == {0, 1}
    assert not {"log", "clip_gradients", "configure_gradient_clipping"} & set(vars(module))
    fit(tmp_path, modules.Classifier(), [watched])
    assert set(series(tmp_path, "loss/total", "run-2")) == {0, 1, 2}


def test_a_batch_without_a_loss_is_left_out(tmp_path):
    class Skipping(modules.Classifier):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    fit(tmp_path, Skipping(), [callback(tmp_path)])
    assert len(series(tmp_path, "loss/total")) == 2


def test_features_from_two_places_are_an_error(tmp_path):
    with pytest.raises(ConfigError, match="use one of them"):
        fit(tmp_path, modules.JEPA(), [callback(tmp_path, "context_encoder")], modules.masked(4))


class Labelled(modules.Classifier):
    def training_step(self, batch, batch_idx):
        return {"loss": self.loss(batch), "labels": batch[1]}


def test_labels_make_probes_of_watched_features(tmp_path):
    """Of several batches of a step the labels come together, as the features do."""
    watched = callback(tmp_path, {"body": "body"})
    fit(tmp_path, Labelled(), [watched], modules.samples(60), accumulate_grad_batches=3)
    assert series(tmp_path, "probe/body_linear_rows")
    assert all(0 <= value <= 1 for value in series(tmp_path, "probe/body_knn_top1").values())


def test_outside_of_a_training_there_is_no_monitor(tmp_path):
    with pytest.raises(ConfigError, match=r"Trainer\.fit"):
        _ = callback(tmp_path).monitor


def test_without_lightning_it_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("hjepa_dist_metrics.integrations.light")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("lightning.pytorch.callbacks", "lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hjepa-dist-metrics\[lightning\]'"):
        importlib.import_module("hjepa_dist_metrics.integrations.lightning")
