"""Lightning's own loggers as outputs."""

import csv

import numpy as np
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger

from hjepa_dist_metrics import MetricsLogger
from hjepa_dist_metrics.integrations.lightning import LoggerSink
from hjepa_dist_metrics.readers.events import event_log


def write(place, logger):
    with MetricsLogger("run", place, sinks=[lambda: LoggerSink(logger, finish=True)]) as writer:
        writer.log_hparams({"lr": 0.5})
        for step in (3, 4):
            writer.log_metrics({"a": 0.25 * step, "b": 2.5}, step=step)
        writer.log_histogram("weights", np.ones(3), step=4)
        writer.log_image("picture", np.zeros((4, 6)), step=4)
        writer.log_text("note", "words", step=4)
        assert writer.failures == []


def test_a_csv_logger_holds_the_numbers(tmp_path):
    logger = CSVLogger(tmp_path / "theirs")
    write(tmp_path, logger)
    with open(f"{logger.log_dir}/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["step"]), float(row["a"]), float(row["b"])) for row in rows] == [
        (3, 0.75, 2.5),
        (4, 1.0, 2.5),
    ]


def test_a_tensorboard_logger_holds_the_numbers(tmp_path):
    logger = TensorBoardLogger(tmp_path / "theirs")
    write(tmp_path, logger)
    points = event_log(logger.log_dir).scalars
    assert dict(points["a"]) == {3: 0.75, 4: 1.0}


class WithImages(DummyLogger):
    """Takes images as the logger of W&B does, and fails at numbers."""

    def __init__(self):
        super().__init__()
        self.images, self.ended = [], None

    def log_image(self, key, images, step=None):
        self.images.append((key, images[0].shape, step))

    def log_metrics(self, *args, **kwargs):
        raise OSError("the place is gone")

    def finalize(self, status):
        self.ended = status


def test_images_go_where_there_is_a_place_for_them(tmp_path):
    logger = WithImages()
    with MetricsLogger("run", tmp_path, sinks=[lambda: LoggerSink(logger, finish=True)]) as writer:
        writer.log_image("picture", np.zeros((4, 6)), step=4)
    assert logger.images == [("picture", (4, 6, 1), 4)]
    assert logger.ended == "success"


def test_a_logger_that_fails_is_reported_once(tmp_path):
    with MetricsLogger("run", tmp_path, sinks=[lambda: LoggerSink(WithImages())]) as writer:
        writer.log_metrics({"a": 1.0}, step=0)
        writer.log_metrics({"a": 2.0}, step=1)
        writer.flush()
        assert len(writer.failures) == 1
    assert "Lightning's WithImages" in writer.failures[0]
