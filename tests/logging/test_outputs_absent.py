"""Packages that are not there, disks that are full: one clear message, and the training ends well."""

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hjepa_dist_metrics import MetricsLogger
from hjepa_dist_metrics.sinks import JsonlSink, MemorySink, jsonl_path, read_jsonl


def errors(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    ("module", "options", "hint"),
    [
        ("wandb", {"use_wandb": True}, "pip install 'hjepa-dist-metrics[wandb]'"),
        ("tensorboard", {}, "pip install 'tensorboard>=2.21'"),
    ],
)
def test_an_absent_package_switches_one_output_off(tmp_path, module, options, hint):
    """In a process of its own, where the package cannot be imported from the start."""
    program = f"""
import sys
sys.modules[{module!r}] = None
from hjepa_dist_metrics import MetricsLogger
with MetricsLogger("run", {str(tmp_path)!r}, **{options!r}) as logger:
    for step in range(3):
        logger.log_metrics({{"a": step}}, step)
print(len(logger.failures))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["1"]
    assert run.stderr.count(hint) == 1
    assert "Traceback" not in run.stderr
    assert [line["a"] for line in read_jsonl(jsonl_path(tmp_path, "run"))] == [0, 1, 2]


def test_an_unwritable_place_is_said_once_an_output(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with MetricsLogger("run", tmp_path / "file", sinks=[MemorySink]) as logger:
        for step in range(5):
            logger.log_metrics({"a": step}, step)
    assert len(errors(caplog)) == len(logger.failures) == 2
    assert all("file" in message for message in errors(caplog))


class Full:
    """A file on a disk with room for some bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        if len(data) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(data)
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_a_full_disk_ends_one_output_and_keeps_what_was_written(tmp_path, caplog):
    memory = MemorySink()

    def lines_on_a_full_disk():
        sink = JsonlSink(tmp_path / "full.jsonl")
        sink._file = Full(sink._file, room=200)
        return sink

    with MetricsLogger("run", tmp_path, sinks=[lines_on_a_full_disk, lambda: memory]) as logger:
        for step in range(50):
            logger.log_metrics({"a": step}, step)
    (message,) = errors(caplog)
    assert "No space left on device" in message
    assert "full.jsonl" in message
    kept = [line["a"] for line in read_jsonl(tmp_path / "full.jsonl")]
    assert 0 < len(kept) < 50
    assert kept == list(range(len(kept)))
    assert [value for _, value in memory.scalars("a")] == list(range(50))


def tmpfs(place: Path) -> bool:
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    return subprocess.run(mount, capture_output=True).returncode == 0


def test_a_really_full_disk(tmp_path, caplog):
    place = tmp_path / "small"
    if not tmpfs(place):
        pytest.skip("this machine does not let the tests mount a small tmpfs")
    try:
        with MetricsLogger("run", place, sinks=[MemorySink]) as logger:
            for step in range(200):
                logger.log_text("long", "x" * 4000, step)
        (failure,) = logger.failures  # one line for all files of the place
        assert failure.startswith("the disk is full (No space left on device): logging to ")
        assert len(errors(caplog)) == 1
        assert all("No space left" in message for message in errors(caplog))
        assert len(read_jsonl(jsonl_path(place, "run"))) > 0
    finally:
        subprocess.run(["umount", str(place)], check=True)
