"""Figures are drawn by a process of their own; where it fails, by the thread; nothing is lost silently."""

import functools
import logging
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hjepa_dist_metrics.figures import worker
from hjepa_dist_metrics.figures.canvas import CARD_DPI, to_image
from hjepa_dist_metrics.figures.run import coverage_map
from hjepa_dist_metrics.figures.training.spectrum import visualize_spectrum
from hjepa_dist_metrics.monitor.figure_renderer import FigureRenderer, draw
from hjepa_dist_metrics.values import Drawing, Image

ROOT = Path(__file__).resolve().parents[2]
SKETCHES = {
    "masking/coverage": functools.partial(coverage_map, np.arange(6.0), 10.0, (2, 3)),
    "collapse/spectrum": functools.partial(visualize_spectrum, {"level 0": np.array([1.0, 0.5, 1e-4])}),
}


def drawing(sketch):
    return Drawing(lambda: to_image(sketch(), CARD_DPI), lambda: sketch)


DRAWINGS = {tag: drawing(sketch) for tag, sketch in SKETCHES.items()}


class Wall:
    """Keep what is written, and the studio's process."""

    def __init__(self):
        self.written = []
        self.studio = FigureRenderer(
            lambda step, values, wall_time: self.written.append((step, dict(values)))
        )
        self.process = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process = self.studio._helper
        self.studio.close()

    def draw(self, step=0, drawings=None):
        self.studio.draw(step, DRAWINGS if drawings is None else drawings)
        assert self.studio.drain(120)


def same(written, drawings=None):
    expected = draw(DRAWINGS if drawings is None else drawings)
    assert set(written) == set(expected)
    for tag, image in expected.items():
        np.testing.assert_array_equal(written[tag].pixels, image.pixels)


def test_another_process_draws_the_same_pictures_and_ends_with_the_studio():
    with Wall() as wall:
        wall.draw(3)
        first = wall.studio._helper
        wall.draw(4)
        assert wall.studio._helper is first
    assert [step for step, _ in wall.written] == [3, 4]
    for _, written in wall.written:
        same(written)
    assert first is wall.process
    assert first.returncode is not None


def test_a_figure_that_fails_there_is_reported_and_the_others_are_written(caplog):
    bad = functools.partial(coverage_map, np.arange(5.0), 10.0, (2, 3))
    mixed = {"bad/one": drawing(bad), "bad/two": Drawing(draw, lambda: lambda: None), **DRAWINGS}
    with Wall() as wall, caplog.at_level(logging.ERROR):
        wall.draw(0, mixed)
    same(wall.written[0][1])
    assert "the figure bad/one could not be drawn: ValueError" in caplog.text
    assert "the figure bad/two could not be drawn" in caplog.text  # a lambda cannot go to another process


def test_a_drawing_without_a_sketch_is_drawn_here():
    dot = Image(np.zeros((2, 2, 3), np.uint8))
    with Wall() as wall:
        wall.draw(0, {"a/dot": Drawing(lambda: dot), **DRAWINGS})
    assert wall.written[0][1].pop("a/dot") is dot
    same(wall.written[0][1])


@pytest.mark.parametrize("command", [["/no/such/python"], [sys.executable, "-c", "raise SystemExit(3)"]])
def test_without_the_process_the_thread_draws_and_one_line_says_so(monkeypatch, caplog, command):
    monkeypatch.setattr(worker, "command", lambda: command)
    with Wall() as wall, caplog.at_level(logging.WARNING):
        wall.draw(0)
        wall.draw(1)
    assert [step for step, _ in wall.written] == [0, 1]
    same(wall.written[1][1])
    assert len([r for r in caplog.records if "in the training's own process" in r.getMessage()]) == 1


def test_a_process_that_is_killed_costs_no_figure(caplog):
    with Wall() as wall, caplog.at_level(logging.WARNING):
        wall.draw(0)
        wall.studio._helper.kill()
        wall.studio._helper.wait()
        wall.draw(1)
    same(wall.written[1][1])
    assert "in the training's own process" in caplog.text


def test_without_matplotlib_one_line_says_what_to_install(monkeypatch, caplog):
    command = worker.command()
    command[3] = f"import sys; sys.modules['matplotlib'] = None; {command[3]}"
    monkeypatch.setattr(worker, "command", lambda: command)
    with Wall() as wall, caplog.at_level(logging.ERROR):
        wall.draw(0)
    assert wall.written == []
    assert "hjepa-dist-metrics[figures]" in caplog.text
    assert len(caplog.records) == 1


def test_sets_that_nobody_has_time_for_are_left_out_and_said(monkeypatch, caplog):
    gate = threading.Event()
    slow = Drawing(lambda: gate.wait(120) and Image(np.zeros((1, 1, 3), np.uint8)))
    with Wall() as wall, caplog.at_level(logging.WARNING):
        for step in range(10):
            wall.studio.draw(step, {"a/slow": slow})
        gate.set()
        assert wall.studio.drain(120)
    assert [step for step, _ in wall.written] == list(range(8))
    assert "the figures of step 9 are left out" in caplog.text


def test_a_drawing_that_never_ends_does_not_keep_the_run(caplog):
    forever = functools.partial(time.sleep, 1000)
    wall = Wall()
    wall.studio.draw(0, {"a/forever": Drawing(draw, lambda: forever)})
    with caplog.at_level(logging.ERROR):
        wall.studio.close(0.5)
    assert "1 sets of figures were not drawn within 0.5 s" in caplog.text
    wall.studio.draw(1, DRAWINGS)
    assert wall.written == []


def test_the_process_ends_with_its_input_and_has_no_torch():
    question = "(_ for _ in ()).throw(LookupError('torch' in __import__('sys').modules))"
    sketches = {**SKETCHES, "is/torch": functools.partial(eval, question)}
    with subprocess.Popen(worker.command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        worker.send(process.stdin, {tag: pickle.dumps(sketch) for tag, sketch in sketches.items()})
        answer = worker.receive(process.stdout)
        process.stdin.close()
        assert process.wait(120) == 0
    assert answer.pop("is/torch") == "LookupError: False"
    same(answer)


STOPPED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in a shell's background has it ignored
import numpy as np
from torch import nn
import torch
sys.path.insert(0, {root!r})
from tests.monitor.observers.test_run_figures import settings, step_arguments
from hjepa_dist_metrics import TrainingMonitor
from hjepa_dist_metrics.monitor import figure_renderer
figure_renderer.SIGNAL_SECONDS = 120.0
model = nn.Linear(2, 2)
config = settings({folder!r}, tensorboard={{"enabled": True}})
monitor = TrainingMonitor(model, torch.optim.SGD(model.parameters(), 0.1), config)
monitor.step(samples=24, losses=torch.tensor(1.0), **step_arguments(0))
monitor.run.collection.close()
os.kill(os.getpid(), signal.{signal})
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_stopped_run_keeps_its_figures(tmp_path, name):
    script = STOPPED.format(root=str(ROOT), folder=str(tmp_path), signal=name)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=300, check=False)
    assert done.returncode in (-signal.Signals[name], 1)
    events = EventAccumulator(str(tmp_path / "tensorboard/run")).Reload()
    assert "masking/coverage" in events.Tags()["images"]
