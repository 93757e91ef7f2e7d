"""launch/*.sh: run on copies, with a stub in place of Python where an installation would be started."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), ROOT / "launch/slurm.sbatch", ROOT / ".ci/run"])

# Makes environments and "installs" by writing down what it was asked for; all else is the real interpreter.
STUB = f"""#!/usr/bin/env bash
case "$*" in
    "-m venv "*)
        [[ -z "${{STUB_NO_ENSUREPIP:-}}" ]] || {{ echo "ensurepip is not available"; exit 1; }}
        target="${{@: -1}}"
        mkdir -p "$target/bin"
        cp "$0" "$target/bin/python"
        echo venv >> "$STUB_LOG" ;;
    "-m pip install "*)
        echo "$*" >> "$STUB_LOG"
        [[ "$*" != *"${{STUB_FAIL_ON:-nothing at all}}"* ]] || {{ echo "ERROR: no space left"; exit 3; }} ;;
    "-m pip "*) ;;
    "-m "*) echo "run $PWD $*" >> "$STUB_LOG"; [[ "$*" != *"${{STUB_FAIL_ON:-nothing at all}}"* ]] ;;
    *"/launch/torchrun.py "*) echo "run $PWD $*" >> "$STUB_LOG" ;;
    *) exec "{sys.executable}" "$@" ;;
esac
"""


class Checkout:
    """A copy of the launch scripts with everything that set-up reads, and a stub interpreter beside it."""

    def __init__(self, base: Path):
        self.root = base / "check out"  # the space is on purpose
        shutil.copytree(
            ROOT / "launch", self.root / "launch", ignore=shutil.ignore_patterns("*.ipynb", "__pycache__")
        )
        shutil.copy(ROOT / "pyproject.toml", self.root)
        self.elsewhere = base / "elsewhere"
        self.elsewhere.mkdir()
        self.bin = base / "bin"
        self.bin.mkdir()
        self.log = base / "stub.log"
        self.python(STUB)

    def python(self, text: str) -> None:
        stub = self.bin / "python3"
        stub.write_text(text)
        stub.chmod(0o755)

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in os.environ.items() if k not in {"VIRTUAL_ENV", "PYTHON", "OMP_NUM_THREADS"}}
        env |= {"PATH": f"{self.bin}:{env['PATH']}", "STUB_LOG": str(self.log), **environment}
        return subprocess.run(
            ["bash", str(self.root / "launch" / script), *arguments],
            cwd=self.elsewhere,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_syntax(script: Path):
    run = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


def test_torch_comes_first_and_the_versions_are_the_tested_ones(checkout: Checkout):
    run = checkout.run("setup.sh", "train,system")
    assert run.returncode == 0, run.stderr
    made, torch, backend, package = checkout.calls()
    assert made == "venv"
    constraint = f"--constraint {checkout.root}/launch/constraints.txt"
    assert constraint in torch
    assert torch.endswith(" torch==2.13.0")
    assert constraint in backend
    assert constraint in package
    assert package.endswith(f"--editable {checkout.root}[train,system]")


def test_the_second_run_installs_nothing(checkout: Checkout):
    assert checkout.run("setup.sh").returncode == 0
    assert len(checkout.calls()) == 4
    run = checkout.run("setup.sh")
    assert (run.returncode, run.stderr, checkout.calls()) == (0, "", [])


@pytest.mark.parametrize("changed", ["pyproject.toml", "launch/constraints.txt"])
def test_a_changed_requirement_installs_again(checkout: Checkout, changed: str):
    checkout.run("setup.sh")
    checkout.calls()
    with (checkout.root / changed).open("a") as file:
        file.write("# changed\n")
    assert checkout.run("setup.sh").returncode == 0
    assert len(checkout.calls()) == 3  # the environment stays, torch and the two other stages run


def test_other_extras_install_again_and_both_are_remembered(checkout: Checkout):
    for extras, expected in [("train", 4), ("train,dev", 3), ("train", 0), ("train,dev", 0)]:
        assert checkout.run("setup.sh", extras).returncode == 0
        assert len(checkout.calls()) == expected


def test_an_active_environment_is_used(checkout: Checkout, tmp_path: Path):
    active = tmp_path / "active"
    (active / "bin").mkdir(parents=True)
    shutil.copy(checkout.bin / "python3", active / "bin/python")
    assert checkout.run("setup.sh", VIRTUAL_ENV=str(active)).returncode == 0
    assert all("pip install" in call for call in checkout.calls())
    assert (active / ".hjepa-setup").exists()
    assert not (checkout.root / ".venv").exists()


def test_an_active_environment_that_is_gone_gives_one_clear_line(checkout: Checkout, tmp_path: Path):
    run = checkout.run("setup.sh", VIRTUAL_ENV=str(tmp_path / "gone"))
    assert run.returncode == 1
    assert len(run.stderr.splitlines()) == 1
    assert f"VIRTUAL_ENV is {tmp_path / 'gone'}" in run.stderr


@pytest.mark.parametrize("script", ["setup.sh", "demo.sh", "test.sh"])
@pytest.mark.parametrize("answer", ["3.8.18", "2.7.18", "Python 3.9.2"])
def test_an_old_python_gives_one_clear_line(checkout: Checkout, script: str, answer: str):
    checkout.python(f"#!/bin/sh\necho {answer}\n")
    run = checkout.run(script)
    assert run.returncode == 1
    assert run.stdout == ""
    assert len(run.stderr.splitlines()) == 1
    assert "Python 3.10 or newer is needed" in run.stderr
    assert answer.removeprefix("Python ") in run.stderr
    assert not (checkout.root / ".venv").exists()


def test_a_missing_python_gives_one_clear_line(checkout: Checkout):
    run = checkout.run("setup.sh", PYTHON="python3.99")
    assert run.returncode == 1
    assert run.stderr.splitlines() == [
        "[setup] error: Python 3.10 or newer is needed, but 'python3.99' was not found; set PYTHON to one"
    ]


def test_a_python_without_ensurepip_gives_one_clear_line(checkout: Checkout):
    run = checkout.run("setup.sh", STUB_NO_ENSUREPIP="1")
    assert run.returncode == 1
    assert "ensurepip is missing" in run.stderr.splitlines()[-1]
    assert len(run.stderr.splitlines()) == 2  # the stage and the error
    assert not (checkout.root / ".venv").exists()


def test_a_failed_installation_shows_the_stage_and_the_log_and_is_tried_again(checkout: Checkout):
    run = checkout.run("setup.sh", STUB_FAIL_ON="torch==")
    assert run.returncode == 1
    assert "error: installing torch==2.13.0 failed" in run.stderr
    assert run.stderr.splitlines()[-1] == "ERROR: no space left"
    checkout.calls()
    assert checkout.run("setup.sh").returncode == 0
    assert len(checkout.calls()) == 3


def test_an_unusable_environment_is_made_again(checkout: Checkout):
    (checkout.root / ".venv/bin").mkdir(parents=True)
    assert checkout.run("setup.sh").returncode == 0
    assert checkout.calls()[0] == "venv"


def test_demo_starts_two_ranks_and_passes_arguments_on(checkout: Checkout):
    run = checkout.run("demo.sh", "--training.epochs", "3")
    assert run.returncode == 0, run.stderr
    command = checkout.calls()[-1]
    assert command.startswith(f"run {checkout.elsewhere} {checkout.root}/launch/torchrun.py --standalone")
    assert "--nproc-per-node 2" in command
    assert f"{checkout.root}/launch/train.py --config {checkout.root}/configs/default.yaml" in command
    assert command.endswith(" --training.epochs 3")


def test_tensorboard_passes_its_arguments_on(checkout: Checkout):
    run = checkout.run("tensorboard.sh", "some logs", "--port", "7007")
    assert run.returncode == 0, run.stderr
    expected = f"run {checkout.elsewhere} -m hjepa_dist_metrics.cli tensorboard some logs --port 7007"
    assert checkout.calls()[-1] == expected


def test_slurm_starts_one_launcher_on_each_machine_and_always_resumes(checkout: Checkout):
    for name, body in {"scontrol": 'echo "node-a"; echo "node-b"', "srun": 'echo "$@"'}.items():
        (checkout.bin / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (checkout.bin / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NNODES": "2"}
    slurm |= {"SLURM_GPUS_ON_NODE": "8", "SLURM_SUBMIT_DIR": str(checkout.root)}
    run = checkout.run("slurm.sbatch", "--training.epochs", "3", **slurm)
    assert run.returncode == 0, run.stderr
    command = run.stdout.strip()
    assert "--nnodes 2 --nproc-per-node 8 --rdzv-id 17" in command
    assert "--rdzv-endpoint node-a:29500" in command
    assert f"{checkout.root}/launch/train.py --config {checkout.root}/configs/default.yaml" in command
    assert command.endswith("--resume --training.epochs 3")


def test_every_check_runs_from_the_root_and_pytest_comes_last(checkout: Checkout):
    run = checkout.run("test.sh", "-k", "one")
    assert run.returncode == 0, run.stderr
    expected = ["ruff check", "ruff format --check", "mypy", "pytest -n auto -k one"]
    assert checkout.calls()[-4:] == [f"run {checkout.root} -m {command}" for command in expected]


@pytest.mark.parametrize("failing", ["ruff check", "ruff format", "mypy", "pytest"])
def test_a_failed_check_fails_the_run_after_all_have_run(checkout: Checkout, failing: str):
    checkout.run("setup.sh", "train,figures,wandb,mlflow,trackio,parquet,system,huggingface,lightning,dev")
    checkout.calls()
    run = checkout.run("test.sh", STUB_FAIL_ON=f"-m {failing}")
    assert run.returncode == 1
    assert len(checkout.calls()) == 4


def test_the_oldest_versions_are_tested_in_an_environment_that_is_thrown_away(checkout: Checkout):
    run = checkout.run("test.sh", "--oldest", "-k", "one", PYTHON="python3", TMPDIR=str(checkout.elsewhere))
    assert run.returncode == 0, run.stderr
    made, install, tests = checkout.calls()
    assert made == "venv"
    floor = re.search(r'"torch>=([0-9.]+)"', (ROOT / "pyproject.toml").read_text())
    assert floor is not None
    assert f" torch=={floor[1]} {checkout.root}[train," in install
    assert "launch/constraints.txt" not in install  # which names the newest torch
    assert tests.startswith(f"run {checkout.root} -m pytest ")
    assert tests.endswith(" -k one")
    assert list(checkout.elsewhere.iterdir()) == []


def test_a_missing_oldest_python_is_one_line(checkout: Checkout):
    run = checkout.run("test.sh", "--oldest", PYTHON="python3.99")
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == "[test] error: 'python3.99' was not found; set PYTHON to the oldest Python to test\n"


@pytest.mark.parametrize("config", sorted(ROOT.glob("configs/accelerate/*.yaml")), ids=lambda p: p.stem)
def test_accelerate_reads_every_configuration(config: Path):
    loaded = load_config_from_file(str(config))
    assert loaded.num_processes >= loaded.num_machines >= 1
    assert (loaded.fsdp_config.get("fsdp_version") if config.stem == "fsdp2" else 2) == 2


def test_the_cpu_configuration_starts_two_gloo_ranks(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(
        """
import torch
import torch.distributed as dist
from accelerate import Accelerator

accelerator = Accelerator(cpu=True)
total = torch.tensor([accelerator.process_index + 1.0])
dist.all_reduce(total)
with open(f"rank{dist.get_rank()}", "w") as file:
    file.write(f"{dist.get_backend()} {dist.get_world_size()} {total.item()}")
accelerator.end_training()
"""
    )
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    run = subprocess.run(
        [*command, "--config_file", str(ROOT / "configs/accelerate/cpu.yaml"), str(script)],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert {p.name: p.read_text() for p in tmp_path.glob("rank*")} == {
        "rank0": "gloo 2 3.0",
        "rank1": "gloo 2 3.0",
    }
