"""Bad input ends a job at once: one clear line and a non-zero exit on every rank."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.jobs import ROOT, TORCHRUN, TRAIN, arguments, finish_all, run, start
from tests.helpers.processes import free_port

DEFAULT = str(ROOT / "configs/default.yaml")
Arguments = Callable[[Path], list[str]]


def folder(path: Path, *, images: int = 0, broken: bool = False) -> Path:
    path.mkdir()
    for index in range(images):
        Image.new("RGB", (32, 32), (index, 0, 0)).save(path / f"{index}.png")
    if broken:
        (path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    return path


def overriding(**settings: object) -> Arguments:
    return lambda tmp: arguments(
        {k.replace("__", "."): v for k, v in settings.items()} | {"logging.log_dir": tmp}
    )


def with_images(tmp: Path, root: Path) -> list[str]:
    return arguments({"data.kind": "image_folder", "data.root": root, "logging.log_dir": tmp})


CASES: dict[str, tuple[Arguments, str]] = {
    "missing config": (lambda tmp: ["--config", str(tmp / "nowhere.yaml")], "nowhere.yaml"),
    "unknown key": (lambda tmp: ["--config", DEFAULT, "--training.epoch", "3"], "'training.epochs'"),
    "wrong type": (lambda tmp: ["--config", DEFAULT, "--training.epochs", "many"], "training.epochs"),
    "empty folder": (lambda tmp: with_images(tmp, folder(tmp / "images")), "holds no images"),
    "broken image": (lambda tmp: with_images(tmp, folder(tmp / "images", images=8, broken=True)), "torn.png"),
    "too many levels": (
        overriding(model__num_hierarchies=4, model__hierarchy_weights="[1,1,1,1]"),
        "num_hierarchies",
    ),
}


def one_line(stderr: str, needle: str, prefix: str) -> None:
    (line,) = stderr.strip().splitlines()
    assert line.startswith(f"{prefix}train.py: error: ")
    assert needle in line


@pytest.mark.parametrize("name", CASES)
def test_a_single_process_says_what_is_wrong(name: str, tmp_path: Path):
    make, needle = CASES[name]
    job = run([sys.executable, TRAIN, *make(tmp_path)], tmp_path / "logs", timeout=60)
    assert job.returncode == 2
    one_line(job.stderr, needle, prefix="")


def on_ranks(world: int, command: list[str], tmp_path: Path) -> list[tuple[int, str]]:
    """Start the ranks as a launcher does, but leave each to end by itself; return exit codes and errors."""
    job = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks: list[subprocess.Popen[str]] = [
        start(command, tmp_path, **job, RANK=str(r), LOCAL_RANK=str(r), LOCAL_WORLD_SIZE=str(world))
        for r in range(world)
    ]
    return [(rank.returncode, rank.stderr) for rank in finish_all(ranks, tmp_path, timeout=60)]


@pytest.mark.parametrize("name", CASES)
def test_every_rank_says_what_is_wrong(name: str, tmp_path: Path):
    make, needle = CASES[name]
    for rank, (code, stderr) in enumerate(on_ranks(2, [sys.executable, TRAIN, *make(tmp_path)], tmp_path)):
        assert code == 2
        one_line(stderr, needle, prefix=f"[rank {rank}] ")


def test_a_batch_smaller_than_the_world_is_told_by_every_rank(tmp_path: Path):
    command = [sys.executable, TRAIN, *overriding(data__batch_size=2)(tmp_path)]
    for rank, (code, stderr) in enumerate(on_ranks(3, command, tmp_path)):
        assert code == 2
        one_line(stderr, "data.batch_size is 2; allowed: 3 or more", prefix=f"[rank {rank}] ")


def test_torchrun_ends_with_an_error_and_our_processes_leave_no_traceback(tmp_path: Path):
    # The agent looks when both ranks have long ended by themselves, and keeps their outputs apart.
    launcher = (*TORCHRUN, "--standalone", "--nproc-per-node", "2", "--monitor-interval", "20")
    apart = ("--redirects", "3", "--log-dir", str(tmp_path / "ranks"))
    command = [*launcher, *apart, TRAIN, *CASES["unknown key"][0](tmp_path)]
    job = run(command, tmp_path / "logs", timeout=90)
    assert job.returncode != 0
    errors = sorted((tmp_path / "ranks").rglob("stderr.log"), key=lambda path: path.parent.name)
    assert len(errors) == 2
    for rank, path in enumerate(errors):
        one_line(path.read_text(), "'training.epochs'", prefix=f"[rank {rank}] ")
    assert not list(tmp_path.rglob("*tfevents*"))
    assert os.listdir(tmp_path) == ["ranks"]
