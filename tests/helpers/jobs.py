"""Real jobs for tests: launch/train.py on a tiny model, started as users start it, and what it wrote."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRAIN = str(ROOT / "launch/train.py")
STEPS = 20
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--local-addr", "127.0.0.1")
TINY: dict[str, object] = {
    "data.batch_size": 32,
    "model.depth": 1,
    "model.predictor_depth": 1,
    "model.embed_dim": 32,
    "model.predictor_dim": 32,
    "training.max_steps": STEPS,
    "training.precision": "fp32",
    "training.probe_every_epochs": 0,
    "logging.log_frequency": 1,
    "logging.cadence.representations": 1,
    "logging.experiment_name": "tiny",
}
# What differs between two runs of the same job: clocks and the machine.
TIMED = ("performance/", "system/", "memory/", "sync/", "wall_time")
# What compares ranks with each other, and is not there on one.
OF_MANY_RANKS = ("data/shared_batches", "parameters/replica_disagreement", "parameters/buffer_disagreement")


@dataclass(frozen=True)
class Job:
    """What a finished job left behind."""

    returncode: int
    stdout: str
    stderr: str
    log_dir: Path

    @property
    def metrics(self) -> dict[int, dict[str, float]]:
        """Return every scalar of the JSON lines by step and tag; the last where a step has several."""
        (path,) = (self.log_dir / "metrics").glob("*.jsonl")
        found: dict[int, dict[str, float]] = {}
        for line in path.read_text().splitlines():
            record = json.loads(line)
            at = found.setdefault(record.pop("step"), {})
            del record["wall_time"]
            at.update({tag: v for tag, v in record.items() if isinstance(v, (int, float))})
        return found

    @property
    def untimed(self) -> dict[int, dict[str, float]]:
        """Return the scalars that a repetition of the job must reproduce."""
        return {
            step: {
                tag: value for tag, value in values.items() if not tag.startswith((*TIMED, *OF_MANY_RANKS))
            }
            for step, values in self.metrics.items()
        }

    @property
    def event_files(self) -> list[Path]:
        """Return all event files."""
        return sorted(self.log_dir.rglob("*tfevents*"))


def arguments(settings: Mapping[str, object]) -> list[str]:
    """Return the training command's arguments for the tiny run with `settings` over it."""
    merged = {**TINY, **settings}
    named = [part for key, value in merged.items() for part in (f"--{key}", str(value))]
    return ["--config", str(ROOT / "configs/default.yaml"), *named]


def start(command: Sequence[str], cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """Start a launcher in a session of its own, so that it can be ended with everything it started."""
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("TORCHELASTIC", "WORLD"))
    }
    return subprocess.Popen(
        list(command),
        cwd=cwd,
        env={**inherited, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], log_dir: Path, timeout: float = 200.0) -> Job:
    """Wait for a launcher; end it and fail where it hangs."""
    (job,) = finish_all([process], log_dir, timeout)
    return job


def finish_all(
    processes: Sequence[subprocess.Popen[str]], log_dir: Path, timeout: float = 200.0
) -> list[Job]:
    """Wait for launchers that run at the same time; end all of them and fail where one hangs."""
    with ThreadPoolExecutor(len(processes)) as readers:
        outputs = [readers.submit(process.communicate, timeout=timeout) for process in processes]
        late = [output for output in outputs if isinstance(output.exception(), subprocess.TimeoutExpired)]
    if late:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        running = [process for process in processes if process.returncode is None]
        left = "\n".join(text[-3000:] for process in running for text in process.communicate())
        raise AssertionError(f"still running after {timeout} s:\n{left}")
    return [Job(p.returncode, *o.result(), log_dir) for p, o in zip(processes, outputs, strict=True)]


def told(jobs: Sequence[Job]) -> str:
    """Return what failed jobs said: a rank's last words stand far above the launcher's report."""
    return "\n".join(f"{job.stdout[-2000:]}\n{job.stderr[-20_000:]}" for job in jobs if job.returncode)


def run(command: Sequence[str], log_dir: Path, timeout: float = 200.0, **environment: str) -> Job:
    """Run a launcher to its end."""
    return finish(start(command, log_dir.parent, **environment), log_dir, timeout)


def train(launcher: Sequence[str], log_dir: Path, settings: Mapping[str, object] | None = None) -> Job:
    """Run launch/train.py through a launcher and require that it succeeds."""
    given = {"logging.log_dir": log_dir, **(settings or {})}
    job = run([*launcher, TRAIN, *arguments(given)], log_dir)
    assert job.returncode == 0, told([job])
    return job
