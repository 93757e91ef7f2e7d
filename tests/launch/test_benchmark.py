"""launch/benchmark.py: every sub-command runs at a tiny size and reports; no times are asserted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def benchmark(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "launch/benchmark.py"), *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
    )


def test_help_lists_the_sub_commands_and_their_options(tmp_path: Path):
    usage = benchmark("--help", cwd=tmp_path)
    assert usage.returncode == 0
    for name in ("health", "sync", "scale", "step", "overhead", "logger", "outputs"):
        assert f"  {name} " in usage.stdout
        assert "--out" in benchmark(name, "--help", cwd=tmp_path).stdout


@pytest.mark.parametrize("arguments", [(), ("nonsense",)])
def test_a_missing_or_unknown_name_is_told(arguments: tuple[str, ...], tmp_path: Path):
    result = benchmark(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert "sync" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_peer_is_one_line(tmp_path: Path):
    hidden = tmp_path / "sitecustomize.py"
    hidden.write_text(
        "import importlib.util as u\nf = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n in ('torcheval', 'ignite') else f(n, *a)\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    result = benchmark("sync", cwd=tmp_path, PYTHONPATH=path)
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert "not installed: ignite, torcheval" in line
    assert "hjepa-dist-metrics[bench]" in line


def test_sync_counts_calls_and_bytes_and_checks_the_values(tmp_path: Path):
    result = benchmark(
        *("sync", "--ranks", "2", "--metrics", "1", "3", "--rounds", "2", "--seconds", "0.01"),
        *("--rows", "64", "--dims", "8", "--covariance-rounds", "1", "--out", str(tmp_path), "--no-plot"),
        *("--memory-rows", "64", "128", "--memory-dim", "8", "--log-step-rounds", "2"),
        *("--methods", "ours", "packed", "accelerate", "torchmetrics"),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert "| ours |" in (tmp_path / "sync.md").read_text()
    data = json.loads((tmp_path / "sync.json").read_text())
    cells = {(cell["method"], cell["metrics"]): cell for cell in data["scalars"]}
    assert [cells["ours", count]["calls"] for count in (1, 3)] == [1, 1]
    assert [cells["packed", count]["sent_bytes"] for count in (1, 3)] == [16, 48]
    assert [cells["accelerate", count]["calls"] for count in (1, 3)] == [1, 3]
    assert [cells["torchmetrics", count]["calls"] for count in (1, 3)] == [4, 12]
    covariance = {cell["way"]: cell for cell in data["covariance"]}
    assert covariance["ours"]["relative_error"] < 1e-9
    assert covariance["gather and SVD"]["sent_bytes"] == 64 * 8 * 4
    assert [cell["rows"] for cell in data["memory"] if cell["way"] == "ours"] == [64, 128]
    shares = [cell["what"] for cell in data["training thread"]]
    assert shares == ["100 scalars", "100 scalars, 2 covariances of 384"]
    assert all(cell["fastest"] > 0 for cell in data["training thread"])


def test_tables_that_nobody_asked_for_are_left_out(tmp_path: Path):
    few = ("sync", "--ranks", "1", "--rounds", "1", "--no-plot", "--out", str(tmp_path))
    result = benchmark(
        *(*few, "--methods", "ours", "packed", "--metrics", "1", "--memory-rows", "--dims", "8"),
        *("--covariance-rounds", "0", "--log-step-rounds", "0"),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert set(json.loads((tmp_path / "sync.json").read_text())) == {"scalars", "training thread"}
    assert "effective rank" not in result.stdout
    nothing = benchmark(*few, "--metrics", "--dims", "--memory-rows", cwd=tmp_path)
    assert nothing.returncode == 2
    (line,) = nothing.stderr.strip().splitlines()
    assert "nothing to measure: give --metrics, --dims or --memory-rows" in line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("sync --ranks 0", "argument --ranks: expected a whole number, 1 or more, got '0'"),
        ("sync --metrics 1 -5", "argument --metrics: expected a whole number, 1 or more, got '-5'"),
        ("sync --covariance-rounds -1", "argument --covariance-rounds: expected a whole number, 0 or more"),
        ("sync --seconds nan", "argument --seconds: expected a number above 0, got 'nan'"),
        ("sync --log-step-rounds x", "argument --log-step-rounds: expected a whole number, 0 or more"),
        ("scale --sizes big", "argument --sizes: expected a whole number, 1 or more, got 'big'"),
        ("scale --rounds 0", "argument --rounds: expected a whole number, 1 or more, got '0'"),
        ("scale --latency-us 1 --gbit 0", "argument --gbit: expected a number above 0, got '0'"),
    ],
)
def test_numbers_that_make_no_sense_are_told_in_one_line(arguments: str, expected: str, tmp_path: Path):
    result = benchmark(*arguments.split(), cwd=tmp_path)
    assert result.returncode == 2
    assert expected in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_scale_predicts_up_to_16384_ranks(tmp_path: Path):
    result = benchmark(
        *("scale", "--sizes", "8", "65536", "--rounds", "3", "--out", str(tmp_path)), cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert all(f"| {size} B |" in result.stdout for size in ("8", "65,536"))
    predictions = [row[1:-1] for row in table_rows(result.stdout) if len(row) == 10]
    predictions = [[cell.strip().replace(",", "") for cell in row] for row in predictions]
    numbers = [row for row in predictions if row[0].isdigit()]
    sets = len(numbers) // 6
    assert [int(row[0]) for row in numbers] == [8, 64, 256, 1024, 4096, 16384] * sets
    assert sets >= 3
    for row in numbers:
        rounds, messages, connections = int(row[1]), int(row[2]), int(row[4])
        assert rounds == connections == int(row[0]).bit_length() - 1
        assert rounds <= messages <= 2 * rounds
    scalars = numbers[5]
    assert (int(scalars[2]), float(scalars[3])) == (14, 114.7)  # 14 frames of 8 KiB


def test_scale_takes_a_network_from_the_command_line(tmp_path: Path):
    arguments = ("scale", "--latency-us", "10", "--gbit", "100", "--out", str(tmp_path))
    result = benchmark(*arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "A network of 10 us a message and 100 Gbit/s." in result.stdout


def test_overhead_compares_four_kinds_of_run_and_names_what_dominates(tmp_path: Path):
    result = benchmark(
        *("overhead", "--ranks", "2", "--steps", "4", "--rounds", "1", "--profile"),
        *("--out", str(tmp_path), "--"),
        *("--data.batch_size", "16", "--model.depth", "1", "--model.predictor_depth", "1"),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    rows = [line.split("|")[1].strip() for line in result.stdout.splitlines() if line.startswith("| ")]
    assert rows[:6] == ["default run, 2 ranks", "---", "off", "observe", "sync", "all"]
    assert "1 rounds of 9 steps" in result.stdout
    observers = result.stdout.split("| observer |")[1].split("training thread, whole")[0]
    for name in ("Activations", "Attention", "Gradients", "Losses", "Timing"):
        assert f"| `{name}` |" in observers
    assert result.stdout.count("dominates") == 2
    drawing = {row[1].strip(): float(row[6]) for row in table_rows(result.stdout) if row[1].strip() in KINDS}
    assert drawing["off"] == drawing["observe"] == drawing["sync"] == 0 < drawing["all"]


KINDS = ("off", "observe", "sync", "all")


def table_rows(text: str) -> list[list[str]]:
    return [line.split("|") for line in text.splitlines() if line.startswith("| ")]


def test_a_wrong_setting_of_the_run_is_one_line(tmp_path: Path):
    result = benchmark("overhead", "--", "--training.epoch", "1", cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert "training.epochs" in line


def test_logger_is_measured_against_a_summary_writer(tmp_path: Path):
    result = benchmark("logger", "--rounds", "3", "--elements", "1000", "--out", str(tmp_path), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = [line.split(" | ")[0].strip("| ") for line in result.stdout.splitlines() if line.startswith("|")]
    assert rows[2:] == ["1 scalar", "100 scalars", "histogram of 1,000", "image 256x256"]
    assert "100 scalars at most 0.1 of 100 add_scalar calls" in result.stdout
    assert (tmp_path / "logger.md").read_text().strip() == result.stdout.strip()
    assert benchmark("logger", "--rounds", "1", cwd=tmp_path).returncode == 2


def test_a_place_that_hangs_is_measured(tmp_path: Path):
    arguments = ("--rounds", "2", "--hang", "0.3", "--out", str(tmp_path))
    result = benchmark("outputs", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if line.startswith("| ")]
    (answers, hangs) = (next(row for row in rows if row[0] == name) for name in ("answers", "hangs"))
    assert answers[1] == answers[5]
    assert hangs[1] == hangs[5]
    assert (answers[6], hangs[6]) == ("0", "0")
    assert benchmark("outputs", "--rounds", "1", cwd=tmp_path).returncode == 2


def test_a_step_is_measured_part_by_part(tmp_path: Path):
    arguments = (
        "--steps",
        "3",
        "--warmup",
        "1",
        "--tensors",
        "4",
        "--idle",
        "0",
        "2",
        "--out",
        str(tmp_path),
    )
    result = benchmark("step", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = [row[1].strip() for row in table_rows(result.stdout)]
    assert rows[2:] == ["plain", "monitored", "monitored, 2 idle observers"]
    assert (tmp_path / "step.md").read_text().strip() == result.stdout.strip()
