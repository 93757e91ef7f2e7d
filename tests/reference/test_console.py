"""What a run of the training command says: lines for log files, how it stopped, why it alerted."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hjepa_dist_metrics import Health, LoggingConfig
from hjepa_dist_metrics.monitor.health.findings import Evidence, Finding
from hjepa_dist_metrics.reference.progress import LogLines
from hjepa_dist_metrics.reference.summary import show
from hjepa_dist_metrics.reference.trainer import Outcome

ROOT = Path(__file__).resolve().parent.parent.parent
LONG = ["--training.epochs", "4000", "--logging.log_frequency", "2", "--logging.figures.enabled", "false"]


def latest(loss, samples):
    return {"loss/total": loss, "performance/total_samples": samples, "health/score": 0.5}


def test_a_line_for_each_log_and_no_other():
    stream = io.StringIO()
    lines = LogLines(10, stream)
    lines(1, 30, {})
    for step in range(2, 12):
        lines(step, 30, latest(2.0, 8.0))
    lines(12, 30, latest(2.0, 88.0))
    assert re.fullmatch(
        r"step 0/30  loss 2\.0000  warning  \d:\d\d:\d\d left\n"
        r"step 10/30  loss 2\.0000  warning  \d:\d\d:\d\d left\n",
        stream.getvalue(),
    )


def command(ranks, tmp_path, *more):
    launch = [sys.executable, str(ROOT / "launch/torchrun.py"), "--standalone", "--local-addr", "127.0.0.1"]
    start = [sys.executable] if ranks == 1 else [*launch, "--nproc-per-node", str(ranks)]
    return [*start, str(ROOT / "launch/train.py"), "--output_dir", str(tmp_path), *LONG, *more]


def stop(ranks, tmp_path, number, *more):
    """Start a run, send a signal as a terminal or a scheduler does, and return (exit code, what it said)."""
    said = tmp_path / "said"
    with said.open("wb") as stream:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command(ranks, tmp_path, *more),
            stdout=stream,
            stderr=stream,
            env=environment,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 200
        while said.read_text().count("\nstep ") < 3:
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.1)
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        return process.wait(100), said.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_it_says_so_in_one_line(tmp_path, ranks, number):
    code, said = stop(ranks, tmp_path, number, "--training.checkpoint_every_steps", "2")
    assert code == 128 + number
    first, *lines, last = said.splitlines()
    assert first == f"train.py: training on {ranks} rank{'s' if ranks > 1 else ''}, cpu"
    assert all(line.startswith("step ") for line in lines), said
    found = re.fullmatch(r"stopped at step (\d+); logs at (\S+); go on from step_(\d+) with: (.*)", last)
    assert found, said
    assert found[2] == str(tmp_path)
    assert 2 <= int(found[3]) <= int(found[1]) + 1
    assert found[4].startswith("python " if ranks == 1 else "torchrun --nproc-per-node 2 ")
    assert found[4].endswith("--training.checkpoint_every_steps 2 --resume")


def outcome(*findings, alerts=()):
    worst = findings[0] if findings else None
    health = Health(worst.severity, str(worst), findings, 9) if worst else Health(step=9)
    return Outcome({}, {}, 10, "run", health, list(alerts), [])


def test_the_end_names_verdict_reasons_and_what_to_do(capsys):
    evidence = Evidence("collapse/effective_rank", 1.5, "0.2 of the 8 dimensions that the run had")
    found = Finding(
        "dimensional_collapse", "failing", "the rank falls", 4, (evidence,), "cause", "advice", ("loss_drop",)
    )
    alerts = ["step 2: loss_spike: loss/total = 9 (high)", "step 5: loss_drop: loss/total = 1 (low)"]
    show(outcome(found, alerts=alerts), LoggingConfig(log_dir="a b"), [("loss", "2", "1", "")])
    said = capsys.readouterr().out
    assert "health" in said
    assert "failing: dimensional_collapse: the rank falls since step 4: collapse/effective_rank = 1.5" in said
    assert "(0.2 of the 8 dimensions that the run had)" in said
    assert "with it: loss_drop" in said
    assert "try: advice" in said
    assert "ended: step 2: loss_spike: loss/total = 9 (high)" in said
    assert "ended: step 5" not in said
    assert "baseline: the number without learning" in said
    for name in ("summary", "report", "tensorboard"):
        assert f"hjepa-metrics {name} 'a b'" in said
    assert "pinnedCards=%5B" in said
