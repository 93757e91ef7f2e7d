"""launch/gpu_check.sh: every line of it runs here, on the host; what fails or is missing is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gpu_check import __main__ as command, machine, racecheck, section, tests as cuda_tests
from gpu_check.section import Section, python

ROOT = Path(__file__).resolve().parents[2]
MOST = 60 << 20  # bytes that may travel to a machine with a GPU
WHEELS = 20 << 20  # of them left for wheels of what such a machine lacks


def gpu_check(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "launch/gpu_check.sh"), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=1700,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.timeout(1800)
def test_a_rehearsal_runs_every_part(tmp_path: Path):
    result = gpu_check("--cpu", "--minutes", "28", "--out", str(tmp_path / "out"), cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    record = json.loads((tmp_path / "out/gpu_check.json").read_text())
    parts = {part["name"]: part for part in record["sections"]}
    assert {name: part["status"] for name, part in parts.items()} == {
        "tests": "passed",
        "racecheck": "skipped",
        "benchmark": "passed",
    }
    cases = parts["tests"]["data"]["cases"]
    files = {path.stem for path in (ROOT / "tests/cuda").glob("test_*.py")}
    assert {case["file"] for case in cases} == files
    assert sum(case["status"] == "passed" for case in cases) > 50
    measured = parts["benchmark"]["data"]
    assert [job["job"] for job in measured["training"]] == ["H-JEPA, tiny", "language model, tiny"]
    for job in measured["training"]:
        assert list(job["kinds"]) == ["off", "default", "representations", "everything"]
        assert job["failures"] == {}
    assert measured["gradients"]["ways"].keys() >= {"clip: torch", "clip: ours", "statistics: ours"}
    assert [part["error"] < 1e-12 for part in measured["covariances"]] == [True, True]
    assert "| tests | passed |" in result.stdout
    assert (tmp_path / "out/gpu_check.md").read_text().splitlines()[-1] in result.stdout


def test_without_a_gpu_it_says_so(tmp_path: Path):
    result = gpu_check(cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 2
    assert result.stderr.startswith("gpu_check: error: no GPU: torch.cuda.is_available() is False; --cpu")
    assert result.stderr.count("\n") == 1
    assert "expected minutes, 1 or more, got '0'" in gpu_check("--minutes", "0", cwd=tmp_path).stderr


def test_an_interpreter_without_torch_is_one_line(tmp_path: Path):
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\nexit 1\n")
    bare.chmod(0o755)
    result = gpu_check("--cpu", cwd=tmp_path, PYTHON=str(bare))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert "has no torch; set PYTHON to an interpreter that has it" in result.stderr


def test_what_is_needed_and_missing_is_said(monkeypatch, capsys):
    monkeypatch.setattr(machine, "missing", lambda names: ["hypothesis"] if "hypothesis" in names else [])
    assert command.main(["--cpu"]) == 2
    assert "the checks need hypothesis" in capsys.readouterr().err


def test_a_part_that_hangs_is_ended_with_what_it_started(tmp_path: Path):
    asleep = python("-c", "import time; time.sleep(600)")
    parent = f"import subprocess, time; print(subprocess.Popen({asleep!r}).pid); time.sleep(600)"
    ended = section.run(python("-uc", parent), 8.0, str(tmp_path / "log"), {})
    assert ended.code is None
    child = int(ended.output)
    stat = Path(f"/proc/{child}/stat")
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.05)  # killed, and gone once its new parent has taken note


def test_failed_tests_are_named(tmp_path: Path):
    results = tmp_path / "tests.xml"
    results.write_text(
        '<testsuites><testsuite><testcase classname="tests.cuda.test_a" name="one" time="0.5">'
        '<properties><property name="bytes" value="3"/></properties></testcase>'
        '<testcase classname="tests.cuda.test_a" name="two" time="1"><failure message="wrong"/></testcase>'
        '<testcase classname="tests.cuda.test_b" name="three"><skipped message="why"/></testcase>'
        "</testsuite></testsuites>"
    )
    cases = cuda_tests.read(results)
    assert [(case["file"], case["status"], case["reason"]) for case in cases] == [
        ("test_a", "passed", ""),
        ("test_a", "failed", "wrong"),
        ("test_b", "skipped", "why"),
    ]
    text = command.table([Section("tests", "failed", 2.0, "two", {"cases": cases})])
    assert "| - test_a | failed | 2 | 1 of 2 passed; bytes: 3 |" in text


SANITIZER = """#!/bin/sh
echo "{says}"
exit {code}
"""


@pytest.mark.parametrize(
    ("says", "code", "status", "detail"),
    [
        ("RACECHECK SUMMARY: 0 hazards displayed", 0, "passed", "0 hazards"),
        ("RACECHECK SUMMARY: 2 hazards displayed", 9, "failed", "hazards: RACECHECK SUMMARY: 2"),
        ("Error: Device not supported", 1, "skipped", "did not run: Error: Device not supported"),
        ("nothing", 0, "skipped", "did not run: nothing"),
    ],
)
def test_what_the_sanitizer_says(says, code, status, detail, tmp_path, monkeypatch):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(SANITIZER.format(says=says, code=code))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found = racecheck.check(tmp_path, 60.0, rehearsal=False)
    assert found.status == status
    assert detail in found.detail


def test_the_tree_is_small_enough_to_travel():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    assert sum(file.stat().st_size for file in files if file.is_file()) <= MOST - WHEELS
