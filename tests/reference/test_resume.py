"""A real run that is killed at a random step and resumed, also by another number of ranks."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hjepa_dist_metrics.reference.arguments import parse
from hjepa_dist_metrics.reference.main import main
from hjepa_dist_metrics.sinks import read_jsonl
from tests.helpers.processes import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
STEPS = 18
TRAIN = [
    *(
        "--model.embed_dim",
        "16",
        "--model.predictor_dim",
        "16",
        "--model.num_heads",
        "2",
        "--model.depth",
        "1",
    ),
    *("--model.predictor_depth", "1", "--training.probe_every_epochs", "0"),
    *("--training.max_steps", str(STEPS), "--training.checkpoint_every_steps", "4"),
    *(
        "--logging.experiment_name",
        "run",
        "--logging.log_frequency",
        "2",
        "--logging.cadence.representations",
        "3",
    ),
]
# tag -> the steps that a run without interruptions writes it at
EXPECTED = {
    "loss/total": [*range(0, STEPS, 2), STEPS - 1],  # and what the last window holds, at the end
    # looked at on the steps that log, of which the last one is one
    "train/ema_momentum": [*range(0, STEPS, 2), STEPS - 1],
    "collapse/effective_rank": [*range(0, STEPS, 3), STEPS - 1],
    "train_epoch/loss": [9, STEPS - 1],  # an epoch has 10 steps
    "val/loss": [0, STEPS - 1],
}


def start(world_size, output, *more):
    """Start the ranks as a launcher does, through its environment variables."""
    port = str(free_port())
    command = [sys.executable, str(ROOT / "launch/train.py"), *TRAIN, "--output_dir", str(output), *more]
    ranks = []
    for rank in range(world_size):
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        if world_size > 1:
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
            env |= {"LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    return ranks


def finish(ranks):
    for rank in ranks:
        output, _ = rank.communicate(timeout=150)
        assert rank.returncode == 0, output.decode()[-3000:]


def kill_at(ranks, lines, step):
    """SIGKILL every rank as soon as the file shows `step`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and all(rank.poll() is None for rank in ranks):
        if lines.exists() and any(record["step"] >= step for record in read_jsonl(lines)):
            break
        time.sleep(0.01)
    for rank in ranks:
        rank.kill()
        rank.communicate()


def recorded(output):
    """Return {tag: {step: value}} of the JSON lines and of the event files; a step twice is an error."""
    lines, events = {}, {}
    for record in read_jsonl(output / "metrics/run.jsonl"):
        for tag in EXPECTED:
            if tag in record:
                assert record["step"] not in lines.setdefault(tag, {}), (tag, record["step"])
                lines[tag][record["step"]] = record[tag]
    board = EventAccumulator(str(output / "tensorboard/run"), size_guidance={"scalars": 0}).Reload()
    for tag in EXPECTED:
        found = board.Scalars(tag)
        events[tag] = {event.step: event.value for event in found}
        assert len(found) == len(events[tag]), tag
    return lines, events


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    finish(start(1, output))
    return recorded(output)[0]


def test_an_uninterrupted_run_logs_what_its_cadences_say(uninterrupted):
    assert {tag: sorted(values) for tag, values in uninterrupted.items()} == EXPECTED


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_killed_and_resumed_it_has_every_point_once(tmp_path, uninterrupted, before, after):
    step = random.SystemRandom().randrange(5, STEPS - 1)
    ranks = start(before, tmp_path)
    kill_at(ranks, tmp_path / "metrics/run.jsonl", step)
    finish(start(after, tmp_path, "--resume"))
    for values in recorded(tmp_path):
        assert {tag: sorted(by_step) for tag, by_step in values.items()} == EXPECTED, f"killed at {step}"
        for tag in EXPECTED:
            assert values[tag] == pytest.approx(uninterrupted[tag], rel=2e-3), f"killed at {step}"
    assert [path.name for path in (tmp_path / "tensorboard").iterdir()] == ["run"]


def test_output_dir_and_resume_stand_for_settings():
    config = parse(["--output_dir", "out"])
    assert (config.logging.log_dir, config.training.checkpoint_dir) == ("out", "out/checkpoints/{run_name}")
    assert not config.training.resume
    config = parse(["--resume", "--logging.log_dir", "logs"])
    assert (config.training.resume, config.training.checkpoint_dir) == (True, "logs/checkpoints/{run_name}")
    config = parse(["--output_dir", "out", "--training.checkpoint_dir", "mine", "--resume"])
    assert (config.logging.log_dir, config.training.checkpoint_dir) == ("out", "mine")
    assert parse([]).training.checkpoint_dir is None


def test_runs_that_start_anew_are_never_mixed(tmp_path, capsys):
    few = [*TRAIN, "--training.max_steps", "1"]
    for _ in range(2):
        assert main([*few, "--output_dir", str(tmp_path)]) == 0
    assert sorted(path.name for path in (tmp_path / "tensorboard").iterdir()) == ["run", "run-2"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["run", "run-2"]
    capsys.readouterr()
    shared = [
        *few,
        "--logging.log_dir",
        str(tmp_path / "c"),
        "--training.checkpoint_dir",
        str(tmp_path / "c"),
    ]
    assert main(shared) == 0
    assert main(shared) == 2
    (message,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "continue it with --resume" in message
    assert sorted(path.name for path in (tmp_path / "c/tensorboard").iterdir()) == ["run"]


def test_a_run_without_a_place_to_write_still_trains(tmp_path, capsys, caplog):
    (tmp_path / "file").write_text("")
    arguments = [*TRAIN, "--training.max_steps", "3", "--logging.log_dir", str(tmp_path / "file" / "logs")]
    assert main(arguments) == 0
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(said) == 2
    assert all("switched off" in message for message in said)
    assert "loss/total" in capsys.readouterr().out
