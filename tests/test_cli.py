"""The command line: what it says, what it writes, and its exit codes, on runs written by the logger."""

import csv
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hjepa_dist_metrics import catalog
from hjepa_dist_metrics.cli import parser
from tests.helpers.cli import run, write_run

ROOT = Path(__file__).resolve().parent.parent


def test_export_as_csv_reads_back(tmp_path, capsys):
    write_run(tmp_path, loss=lambda step: math.inf if step == 1 else step / 3)
    code, out, _ = run(capsys, "export", str(tmp_path), "--tags", "loss/*")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["run"], row["tag"], int(row["step"])) for row in rows] == [
        ("run", "loss/total", step) for step in range(10)
    ]
    assert float(rows[1]["value"]) == math.inf
    assert float(rows[9]["value"]) == pytest.approx(3.0)


def test_export_as_json_lines_and_parquet(tmp_path, capsys):
    logs = tmp_path / "logs"
    write_run(logs)
    target = tmp_path / "out.jsonl"
    assert run(capsys, "export", str(logs), "--format", "jsonl", "--output", str(target))[0] == 0
    records = [json.loads(line) for line in target.read_text().splitlines()]
    assert {record["tag"] for record in records} >= {"loss/total", "own/tag"}
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow (extra parquet) is not installed")
    target = tmp_path / "out.parquet"
    assert run(capsys, "export", str(logs), "--format", "parquet", "--output", str(target))[0] == 0
    table = parquet.read_table(str(target))
    assert table.column_names == ["run", "tag", "step", "value"]
    assert table.num_rows == len(records)
    code, _, err = run(capsys, "export", str(logs), "--format", "parquet")
    assert code == 2
    assert "--output" in err


def test_explain_says_what_the_catalog_knows(capsys):
    code, out, _ = run(capsys, "explain", "collapse/effective_rank")
    assert (code, out.strip()) == (0, catalog.explain("collapse/effective_rank").strip())
    code, out, err = run(capsys, "explain", "collapse/efective_rank")
    assert (code, out) == (2, "")
    assert "collapse/effective_rank" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["summary", "missing"],
        ["summary", "."],
        ["report", "missing"],
        ["compare", "missing", "other"],
        ["export", "missing"],
        ["tensorboard", "missing"],
        ["explain", "nothing/like/this"],
    ],
)
def test_errors_are_one_line(tmp_path, capsys, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("hjepa-metrics: error: ")
    assert len(err.strip().splitlines()) == 1


def test_a_damaged_file_is_one_line_too(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text("{broken\n{}\n")
    code, _, err = run(capsys, "summary", str(tmp_path))
    assert code == 2
    assert "holds no scalars" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["sumary"], "did you mean 'summary'?"),
        (["raport", "x"], "did you mean 'report'?"),
        (["."], "did you mean `hjepa-metrics summary .`?"),
        (["xyzzy"], "commands: summary, watch, compare"),
    ],
)
def test_a_mistyped_command_is_answered_with_the_right_one(capsys, arguments, hint):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert hint in err
    assert len(err.splitlines()) == 1


def test_a_run_is_found_by_its_name_and_the_newest_without_one(tmp_path, capsys, monkeypatch):
    write_run(tmp_path / "results/logs", "older", leak=range(10))
    write_run(tmp_path / "results/logs", "newer")
    for number, name in enumerate(("older", "newer"), start=1):
        for file in (tmp_path / "results/logs").rglob(f"*{name}*/*"):
            os.utime(file, (number, number))
        os.utime(tmp_path / f"results/logs/metrics/{name}.jsonl", (number, number))
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "summary")
    assert (code, out.splitlines()[0].split(":")[0]) == (0, "Run newer")
    code, out, _ = run(capsys, "summary", "older")
    assert (code, out.splitlines()[0].split(":")[0]) == (1, "Run older")
    code, _, err = run(capsys, "summary", "oldest")
    assert code == 2
    assert "there is no file, directory or run 'oldest'; runs here: older" in err
    assert run(capsys, "compare", "older", "newer", "--all")[1].startswith("The runs part by over ")
    code, out, _ = run(capsys, "report", "older", "newer", "--output", "both.html")
    assert (code, out) == (0, "wrote both.html\n")
    assert "<title>older, newer</title>" in Path("both.html").read_text()


def test_without_any_run_the_places_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "summary")
    assert code == 2
    assert "no runs below results, logs, runs or here" in err


def test_several_runs_are_told_apart(tmp_path, capsys):
    write_run(tmp_path, "a")
    write_run(tmp_path, "b", leak=range(10))
    assert run(capsys, "summary", str(tmp_path))[0] == 1
    assert run(capsys, "summary", str(tmp_path), "--run", "a")[0] == 0
    code, _, err = run(capsys, "summary", str(tmp_path), "--run", "c")
    assert code == 2
    assert "a, b" in err


def test_doctor_alone(tmp_path, capsys):
    code, out, _ = run(capsys, "doctor", "--log_dir", str(tmp_path / "new/logs"))
    assert code == 0
    states = {line[6:].split(":")[0]: line.split()[0] for line in out.splitlines()}
    assert states["all-reduce"] == states["write permission"] == states["tensorboard"] == "ok"
    assert {"versions", "backends", "devices", "free disk", "launcher"} <= set(states)
    assert not (tmp_path / "new").exists()


def test_doctor_finds_a_place_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    from hjepa_dist_metrics.commands import doctor

    def refuse(directory):
        raise PermissionError(13, "Permission denied", str(directory))

    monkeypatch.setattr(doctor, "_write", refuse)
    code, out, _ = run(capsys, "doctor", "--log_dir", str(tmp_path))
    assert code == 1
    assert f"FAIL  write permission: Permission denied ({tmp_path})" in out


def test_doctor_reduces_over_the_ranks_of_a_launcher(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    finished = subprocess.run(
        [
            *command,
            "--nproc-per-node",
            "2",
            "-m",
            "hjepa_dist_metrics.cli",
            "doctor",
            "--log_dir",
            str(tmp_path),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    assert "2 ranks over gloo" in finished.stdout
    assert "right over 2 ranks" in finished.stdout
    assert finished.stdout.count("all-reduce") == 1


def test_tensorboard_finds_the_newest_logs(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run("results/old", "a", steps=1)
    write_run("results/new", "b", steps=1)
    old = Path("results/old/tensorboard/a")
    for file in old.iterdir():
        os.utime(file, (1, 1))
    code, out, _ = run(capsys, "tensorboard", "--print", "--port", "0")
    assert code == 0
    assert "--logdir results/new/tensorboard" in out
    assert "--samples_per_plugin scalars=1000000,images=100" in out
    assert "--logdir results/old/tensorboard" in run(capsys, "tensorboard", "results/old", "--print")[1]


def test_a_taken_port_is_said(tmp_path, capsys):
    import socket

    write_run(tmp_path, steps=1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, _, err = run(capsys, "tensorboard", str(tmp_path), "--host", "127.0.0.1", "--port", port)
    assert code == 2
    assert "--port" in err


def test_every_sub_command_has_help_that_tells_the_exit_codes(capsys):
    (subcommands,) = [
        action.choices for action in parser()._actions if hasattr(action, "choices") and action.choices
    ]
    assert set(subcommands) == {
        *("summary", "watch", "compare", "report", "tensorboard", "explain", "export", "grafana", "doctor")
    }
    for name, command in subcommands.items():
        text = command.format_help()
        assert "exit codes" in text, name
        for action in command._actions:
            assert action.help, (name, action.dest)


def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    write_run(tmp_path, steps=2000)
    command = f"'{sys.executable}' -m hjepa_dist_metrics.cli export '{tmp_path}' | head -n 1"
    finished = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "run,tag,step,value\n", "")
