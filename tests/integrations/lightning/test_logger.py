"""MetricsLogger as a logger of Lightning: numbers, settings, a second run, a test after the training."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hjepa_dist_metrics.integrations.lightning import MetricsLogger
from hjepa_dist_metrics.sinks import read_jsonl
from tests.integrations.lightning import modules


def series(directory, tag, run="run"):
    lines = read_jsonl(directory / f"metrics/{run}.jsonl")
    return {line["step"]: line[tag] for line in lines if tag in line}


class Logging(modules.Classifier):
    def __init__(self, depth=2):
        super().__init__()
        self.save_hyperparameters()
        self.example_input_array = None

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.loss(batch))


def fit(writer, directory):
    trainer = modules.trainer(directory, logger=writer)
    module = Logging()
    trainer.fit(module, modules.loader(modules.samples(8)), modules.loader(modules.samples(4)))
    return trainer, module


def test_what_a_module_logs_is_written(tmp_path):
    writer = MetricsLogger("run", tmp_path)
    trainer, module = fit(writer, tmp_path)
    assert list(series(tmp_path, "error")) == [0, 1, 2]
    assert series(tmp_path, "val_loss")[2] == pytest.approx(trainer.callback_metrics["val_loss"].item())
    assert series(tmp_path, "epoch") == {0: 0, 1: 0, 2: 0}
    board = EventAccumulator(str(tmp_path / "tensorboard/run")).Reload()
    assert [event.step for event in board.Scalars("error")] == [0, 1, 2]
    assert "depth" in str(board.SummaryMetadata("_hparams_/session_start_info"))
    trainer.test(module, modules.loader(modules.samples(4)), verbose=False)
    assert list(series(tmp_path, "test_loss")) == [3]  # in the same run, which the training's end had closed
    assert list(series(tmp_path, "error")) == [0, 1, 2]


def test_a_second_run_of_a_name_has_its_own_and_one_that_resumes_goes_on(tmp_path):
    fit(MetricsLogger("run", tmp_path), tmp_path)
    second = MetricsLogger("run", tmp_path)
    fit(second, tmp_path)
    assert second.name == "run-2"
    again = MetricsLogger("run", tmp_path, resume=True)
    again.log_metrics({"more": 1.0}, step=7)
    again.finalize("success")
    assert series(tmp_path, "more") == {7: 1.0}
    assert list(series(tmp_path, "error")) == [0, 1, 2]


def test_where_lightning_puts_checkpoints(tmp_path):
    writer = MetricsLogger("run", tmp_path)
    trainer = modules.trainer(tmp_path, logger=writer, enable_checkpointing=True)
    trainer.fit(Logging(), modules.loader(modules.samples(8)), modules.loader(modules.samples(4)))
    assert list((tmp_path / "run/checkpoints").glob("*.ckpt"))


def test_the_experiment_is_the_packages_own_logger(tmp_path):
    writer = MetricsLogger("run", tmp_path, config={"tensorboard": {"enabled": False}})
    writer.experiment.log_text("note", "words", step=1)
    writer.finalize("failed")
    assert series(tmp_path, "note")
    assert not list(tmp_path.rglob("*tfevents*"))
