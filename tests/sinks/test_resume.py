"""A run that is killed and resumed leaves every step once, in every file."""

import signal
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hjepa_dist_metrics.sinks import jsonl_path, read_jsonl, tensorboard_dir

PROGRAM = """
import os, signal, sys
from hjepa_dist_metrics.sinks import (
    BackgroundSink, JsonlSink, SinkGroup, TensorBoardSink, claim_run_name, jsonl_path, tensorboard_dir
)
from hjepa_dist_metrics.values import Scalar

log_dir, start, end, kill_at, checkpoint = sys.argv[1], *map(int, sys.argv[2:])
name = claim_run_name(log_dir, "run", resume=start > 0)
sink = BackgroundSink(SinkGroup.open({
    "board": lambda: TensorBoardSink(tensorboard_dir(log_dir, name), start_step=start),
    "lines": lambda: JsonlSink(jsonl_path(log_dir, name), start_step=start),
}))
for step in range(start, end):
    if step == checkpoint:
        sink.flush()
    if step == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    sink.write(step, {"a": Scalar(float(start + 1)), "step": Scalar(float(step))})
"""


def train(log_dir, start, end, kill_at=-1, checkpoint=-1):
    arguments = [str(log_dir), *(str(number) for number in (start, end, kill_at, checkpoint))]
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, timeout=120, check=False
    ).returncode


@pytest.mark.parametrize("kill_at", [40, 41, 97])
def test_killed_after_a_checkpoint_and_resumed_from_it(tmp_path, kill_at):
    assert train(tmp_path, 0, 100, kill_at=kill_at, checkpoint=40) == -signal.SIGKILL
    assert train(tmp_path, 40, 120) == 0
    expected = [(step, 1.0 if step < 40 else 41.0) for step in range(120)]
    assert [(record["step"], record["a"]) for record in read_jsonl(jsonl_path(tmp_path, "run"))] == expected
    board = EventAccumulator(str(tensorboard_dir(tmp_path, "run")), size_guidance={"scalars": 0}).Reload()
    assert [(event.step, event.value) for event in board.Scalars("a")] == expected
    assert [event.value for event in board.Scalars("step")] == [float(step) for step in range(120)]


def test_a_second_run_under_the_name_stays_apart(tmp_path):
    assert train(tmp_path, 0, 5) == 0
    assert train(tmp_path, 0, 3) == 0
    assert len(read_jsonl(jsonl_path(tmp_path, "run"))) == 5
    assert len(read_jsonl(jsonl_path(tmp_path, "run-2"))) == 3
