"""The tracker under a real `accelerate launch` on two processes, and accelerate's trackers as sinks."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from accelerate.tracking import GeneralTracker, TensorBoardTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hjepa_dist_metrics import ConfigError, MetricsLogger
from hjepa_dist_metrics.integrations.accelerate import MetricsTracker, TrackerSink
from hjepa_dist_metrics.sinks import read_jsonl

ROOT = Path(__file__).resolve().parents[3]

SCRIPT = """
import sys

import numpy as np
import torch
from accelerate import Accelerator
from hjepa_dist_metrics.integrations.accelerate import MetricsTracker

tracker = MetricsTracker("run", "logs")
accelerator = Accelerator(cpu=True, log_with=tracker)
assert accelerator.num_processes == 2
EVERYWHERE
accelerator.init_trackers("project", config={"learning_rate": 0.5, "model": {"depth": 3}})
model = torch.nn.Linear(2, 1)
model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.5))
for step in range(4):
    loss = model(torch.ones(3, 2)).square().mean()
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    accelerator.log({"train/step": step, "note": "text"}, step=step, log_kwargs={})
    if tracker_is_everywhere:
        rank = accelerator.process_index
        tracker.tracker.accumulate_metrics({"rank": rank}, weight=1 + rank)
if tracker_is_everywhere:
    tracker.tracker.log_accumulated_metrics(step=3)
if accelerator.is_main_process:
    tracker.log_images({"pictures": np.zeros((2, 8, 8, 3))}, step=3)
accelerator.end_training()
# In one write, for both ranks print into one pipe.
sys.stdout.write(f"files {accelerator.process_index}\\n")
"""


def board(directory):
    return EventAccumulator(str(directory), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def scalars(directory, tag):
    return [(event.step, event.value) for event in board(directory).Scalars(tag)]


@pytest.mark.parametrize("everywhere", [False, True], ids=["main process", "all ranks"])
def test_as_a_tracker_on_two_processes(tmp_path, everywhere):
    start = f"tracker_is_everywhere = {everywhere}\n" + "tracker.start_on_all_ranks()" * everywhere
    (tmp_path / "script.py").write_text(SCRIPT.replace("EVERYWHERE", start))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    run = subprocess.run(
        [*command, str(ROOT / "configs/accelerate/cpu.yaml"), "script.py"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert sorted(line for line in run.stdout.splitlines() if line.startswith("files")) == [
        "files 0",
        "files 1",
    ]
    directory = tmp_path / "logs/tensorboard/run"
    assert len(list(directory.iterdir())) == 1
    assert scalars(directory, "train/step") == [(step, step) for step in range(4)]
    if everywhere:
        assert scalars(directory, "rank") == [(3, pytest.approx(2 / 3))]
    accumulator = board(directory)
    assert accumulator.Tags()["images"] == ["pictures"]
    assert [event.step for event in accumulator.Tensors("note/text_summary")] == list(range(4))
    assert "learning_rate" in str(accumulator.SummaryMetadata("_hparams_/session_start_info"))
    assert len(read_jsonl(tmp_path / "logs/metrics/run.jsonl")) >= 4


def test_before_it_is_started_it_says_so(tmp_path):
    tracker = MetricsTracker("run", tmp_path)
    with pytest.raises(ConfigError, match="init_trackers"):
        tracker.log({"a": 1})
    tracker.finish()
    assert list(tmp_path.iterdir()) == []


class Recording(GeneralTracker):
    """A tracker that keeps its calls."""

    name = "recording"
    requires_logging_directory = False
    main_process_only = False

    def __init__(self):
        super().__init__()
        self.calls = []

    @property
    def tracker(self):
        return self.calls

    def store_init_configuration(self, values):
        self.calls.append(("configuration", values))

    def log(self, values, step=None, **kwargs):
        self.calls.append(("log", values, step))

    def log_images(self, values, step=None, **kwargs):
        self.calls.append(("images", {name: np.shape(images) for name, images in values.items()}, step))

    def finish(self):
        self.calls.append(("finish",))


def test_a_tracker_as_a_sink(tmp_path):
    tracker = Recording()
    with MetricsLogger("run", tmp_path, sinks=[lambda: TrackerSink(tracker, finish=True)]) as logger:
        logger.log_hparams({"lr": 0.5})
        logger.log_metrics({"a": 1, "b": 2.5}, step=3)
        logger.log_histogram("weights", np.ones(3), step=3)
        logger.log_image("picture", np.zeros((4, 6)), step=3)
        logger.log_text("note", "words", step=4)
    assert tracker.calls == [
        ("configuration", {"lr": 0.5}),
        ("log", {"a": 1.0, "b": 2.5}, 3),
        ("images", {"picture": (1, 4, 6, 3)}, 3),
        ("log", {"note": "words"}, 4),
        ("finish",),
    ]


def test_accelerates_own_tensorboard_tracker_as_a_sink(tmp_path):
    tracker = TensorBoardTracker("theirs", str(tmp_path))
    tracker.start()
    with MetricsLogger("ours", tmp_path, sinks=[lambda: TrackerSink(tracker, finish=True)]) as logger:
        logger.log_metrics({"a": 0.5}, step=3)
        logger.log_image("picture", np.zeros((4, 6)), step=3)
        assert logger.failures == []
    assert scalars(tmp_path / "theirs", "a") == [(3, 0.5)]
    assert board(tmp_path / "theirs").Images("picture")[0].width == 6


def test_a_failing_tracker_leaves_the_rest_alone(tmp_path):
    class Broken(Recording):
        def log(self, values, step=None, **kwargs):
            raise ConnectionError("no network")

    with MetricsLogger("run", tmp_path, sinks=[lambda: TrackerSink(Broken())]) as logger:
        for step in range(3):
            logger.log_metrics({"a": step}, step)
    assert len(logger.failures) == 1
    assert "accelerate tracker 'recording'" in logger.failures[0]
    assert [line["a"] for line in read_jsonl(tmp_path / "metrics/run.jsonl")] == [0, 1, 2]
