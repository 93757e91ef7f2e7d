"""How a run begins and ends: names that all ranks know, values under way, callers that come too late."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from hjepa_dist_metrics import (
    ConfigError,
    DistributedMetric,
    MetricsLogger,
    SyncTimeoutError,
    TrainingMonitor,
)
from hjepa_dist_metrics.sinks import jsonl_path, read_jsonl
from hjepa_dist_metrics.states import Sum
from tests.helpers.processes import free_port, run_disposable


def monitor_of(log_dir, **more):
    model = nn.Linear(2, 2)
    settings = {"experiment_name": "run", "log_dir": str(log_dir), "log_frequency": 1}
    settings |= {"tensorboard": {"enabled": False}, "sync_timeout": 20.0}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return TrainingMonitor(model, optimizer, {**settings, **more.pop("config", {})}, **more)


def steps_of(log_dir, name="run"):
    return sorted({line["step"] for line in read_jsonl(jsonl_path(log_dir, name)) if "loss/total" in line})


PROGRAM = """
import sys, time
from pathlib import Path
from hjepa_dist_metrics import DistributedMetric
from hjepa_dist_metrics.states import Sum
from tests.monitor.test_ends import monitor_of

class Slow(DistributedMetric):
    def __init__(self):
        self.add_state("seen", Sum())
    def update(self, x):
        self.seen.update(x)
    def compute_from(self, states):
        time.sleep(0.2)
        return {"user/seen": states["seen"].value}

monitor = monitor_of(sys.argv[1])
monitor.add_metric("slow", Slow())
def train():
    for step in range(4):
        monitor.step(samples=1, losses=float(step))
if sys.argv[2] == "exit":
    train()
else:
    with monitor:
        train()
        raise ValueError("the model is gone")
"""


@pytest.mark.parametrize("way", ["exit", "exception"])
def test_what_is_on_its_way_at_the_end_is_written(tmp_path, way):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), way]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == (way == "exception"), done.stderr
    assert steps_of(tmp_path) == [0, 1, 2, 3]


def test_a_callback_that_waits_for_a_sync_is_told_and_training_goes_on(tmp_path, caplog):
    monitor = None

    def on_alert(alert):
        monitor.state_dict()

    monitor = monitor_of(tmp_path, on_alert=on_alert)
    with monitor:
        for step in range(4):
            monitor.step(samples=1, losses=float("nan") if step else 1.0)
    assert steps_of(tmp_path) == [0, 1, 2, 3]
    assert [alert.rule for alert in monitor.alerts] == ["nonfinite"]
    (failure,) = [record for record in caplog.records if "on_alert failed" in record.getMessage()]
    assert "in the training loop" in str(failure.exc_info[1])


def only_rank_zero(rank, log_dir, kind):
    """Rank 1 goes on to train, as it does where the logger stands under `if rank == 0`."""
    told = None
    if rank == 0:
        try:
            if kind == "logger":
                MetricsLogger("run", log_dir, {"sync_timeout": 2.0})
            else:
                monitor_of(log_dir, config={"sync_timeout": 2.0})
        except SyncTimeoutError as error:
            told = (error.ranks, str(error))
    total = torch.ones(1)
    dist.all_reduce(total)
    return told, total.item()


@pytest.mark.parametrize("kind", ["logger", "monitor"])
def test_made_on_one_rank_only_it_says_so_and_leaves_the_training_alone(tmp_path, kind):
    results = run_disposable(2, only_rank_zero, str(tmp_path), kind)
    assert [total for _, total in results.values()] == [2.0, 2.0]
    ranks, text = results[0][0]
    assert ranks == (1,)
    assert "the run 'run', a collective call: make it on every rank" in text


def names_of_a_group(rank, log_dir):
    from hjepa_dist_metrics import ProcessContext

    group = dist.new_group([1, 2])
    context = ProcessContext.current(group)
    with MetricsLogger("run", log_dir, context=context) as logger:
        logger.log_metrics({"a": rank}, 0)
    dist.barrier()  # rank 0 hosts the job's store, and has nothing to do
    return logger.run_name


def test_a_run_of_some_ranks_has_one_name(tmp_path):
    (tmp_path / "tensorboard" / "run").mkdir(parents=True)
    assert run_disposable(3, names_of_a_group, str(tmp_path)) == {0: "run", 1: "run-2", 2: "run-2"}
    assert [line["a"] for line in read_jsonl(jsonl_path(tmp_path, "run-2"))] == [1]


def test_a_taken_name_and_values_after_the_end_are_told(tmp_path, caplog):
    for _ in range(2):
        with MetricsLogger("run", tmp_path) as logger:
            logger.log_metrics({"a": 1}, 1)
    (renamed,) = [record.getMessage() for record in caplog.records]
    assert "this one is 'run-2'" in renamed
    for step in (2, 3):
        logger.log_metrics({"a": step}, step)
    told = [record.getMessage() for record in caplog.records][1:]
    assert len(told) == 1
    assert "not written" in told[0]
    assert [line["a"] for line in read_jsonl(jsonl_path(tmp_path, "run-2"))] == [1]


def test_a_resumed_run_goes_on_behind_its_last_step(tmp_path):
    with monitor_of(tmp_path) as monitor:
        for _ in range(4):
            monitor.step(samples=1, losses=1.0)
    with monitor_of(tmp_path, resume=True) as resumed:
        assert resumed.step_number == 4
        resumed.step(samples=1, losses=1.0)
    assert steps_of(tmp_path) == [0, 1, 2, 3, 4]


def test_a_checkpoint_from_before_the_files_end_needs_its_step(tmp_path):
    with monitor_of(tmp_path) as monitor:
        for step in range(4):
            if step == 2:
                state = monitor.state_dict()
            monitor.step(samples=1, losses=1.0)
    with monitor_of(tmp_path, resume=True) as late, pytest.raises(ConfigError, match="start_step=2"):
        late.load_state_dict(state)
    with monitor_of(tmp_path, resume=True, start_step=2) as resumed:
        resumed.load_state_dict(state)
        resumed.step(samples=1, losses=1.0)
    assert steps_of(tmp_path) == [0, 1, 2]


def test_methods_of_a_summary_writer_are_named_in_the_error(tmp_path):
    with MetricsLogger("run", tmp_path) as logger:
        with pytest.raises(AttributeError, match=r"log_text\(tag, text, step\)"):
            logger.add_text("note", "x", 0)
        with pytest.raises(AttributeError, match="no attribute 'add_nothing'"):
            logger.add_nothing()
        with pytest.raises(ConfigError, match="a step goes in as step="):
            logger.log_embedding("points", torch.zeros(2, 2), 3)


class BrokenFormula(DistributedMetric):
    def __init__(self):
        self.add_state("seen", Sum())

    def update(self, x):
        self.seen.update(x)

    def compute_from(self, states):
        if float(states["seen"].value) > 2:
            raise ValueError("a formula of mine")
        return {}


@pytest.mark.parametrize("sync", ["inline", "background"])
def test_close_does_not_repeat_the_error_of_the_last_step(tmp_path, sync):
    monitor = monitor_of(tmp_path, config={"sync": sync})
    broken = BrokenFormula()
    monitor.add_metric("broken", broken)

    def train():
        for step in range(1000):
            broken.update(torch.tensor(float(step)))
            monitor.step(samples=1, losses=1.0)

    with pytest.raises(ValueError, match="a formula of mine"):
        train()
    monitor.close()
    assert steps_of(tmp_path)[:2] == [0, 1]


def test_an_error_that_no_step_has_raised_is_raised_by_close(tmp_path):
    monitor = monitor_of(tmp_path, config={"cadence": {"scalars": 0}})
    broken = BrokenFormula()
    monitor.add_metric("broken", broken, "representations")
    broken.update(torch.tensor(3.0))
    monitor.step(samples=1, losses=1.0)
    with pytest.raises(ValueError, match="a formula of mine"):
        monitor.close()


def claim_on_ranks(log_dir):
    try:
        MetricsLogger("run", log_dir, resume=True)
    except ConfigError as error:
        return str(error)


def test_a_run_that_cannot_be_claimed_is_one_error_on_every_rank(tmp_path, gloo):
    errors = gloo(2).run(claim_on_ranks, tmp_path / ("x" * 300))
    assert len(set(errors)) == 1
    assert "the run 'run' cannot be opened in" in errors[0]
    assert "File name too long" in errors[0]


TERMINATED = """
import os, signal, sys, time
from tests.monitor.test_ends import monitor_of
from hjepa_dist_metrics.states import Sum
from tests.helpers.processes import join_world
from hjepa_dist_metrics import DistributedMetric
from hjepa_dist_metrics.states import Sum

class Slow(DistributedMetric):
    def __init__(self):
        self.add_state("seen", Sum())
    def update(self, x):
        self.seen.update(x)
    def compute_from(self, states):
        time.sleep(0.3)
        return {"user/seen": states["seen"].value}

rank = int(sys.argv[2])
join_world(rank, 2, int(sys.argv[3]))
monitor = monitor_of(sys.argv[1])
monitor.add_metric("slow", Slow())
for step in range(6):
    monitor.step(samples=1, losses=float(step))
print("asked", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_ranks_loses_no_log_that_all_have_asked_for(tmp_path, number):
    port, root = free_port(), Path(__file__).resolve().parents[2]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", TERMINATED, str(tmp_path), str(rank), str(port)],
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            assert rank.stdout.readline() == "asked\n"
        for rank in ranks:
            rank.send_signal(number)
        for rank in ranks:
            rank.wait(30)
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert steps_of(tmp_path) == [0, 1, 2, 3, 4, 5]
