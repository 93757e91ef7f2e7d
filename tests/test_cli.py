"""The command line: what it says, what it writes, and its exit codes, on runs written by the logger."""

import csv
import io
import json
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from hjepa_dist_metrics import MetricsLogger, TrainingMonitor, catalog
from hjepa_dist_metrics.cli import main, parser
from hjepa_dist_metrics.commands.charts import line_chart
from hjepa_dist_metrics.commands.compare import parting, partings
from hjepa_dist_metrics.commands.runs import load_each, load_runs

ROOT = Path(__file__).resolve().parent.parent


def write_run(log_dir, name="run", rank=30.0, leak=(), loss=None, steps=10, **options):
    with MetricsLogger(name, log_dir, **options) as logger:
        logger.log_hparams({"model": {"embed_dim": 64}, "training": {"learning_rate": 0.5}})
        for step in range(steps):
            values = {"loss/total": loss(step) if loss else 1.0 / (1 + step)}
            values |= {"collapse/effective_rank": rank, "collapse/num_samples": 1000, "own/tag": step}
            values |= {
                "masking/context_target_overlap": 0.3 * (step in leak),
                "performance/samples_per_second": 100.0 + step,
            }
            logger.log_metrics(values, step)


def run(capsys, *arguments):
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("use_tensorboard", [True, False])
def test_summary_of_a_healthy_run(tmp_path, capsys, use_tensorboard):
    write_run(tmp_path, use_tensorboard=use_tensorboard)
    code, out, _ = run(capsys, "summary", str(tmp_path))
    assert code == 0
    assert out.splitlines()[2] == "healthy"
    (line,) = [line for line in out.splitlines() if line.startswith("collapse/effective_rank")]
    assert re.search(r"\b30\b +30\b", line)
    assert "own/tag" not in out
    assert "own/tag" in run(capsys, "summary", str(tmp_path), "--all")[1]
    assert "\x1b" not in out


LEAK = "failing: mask_leak: the context sees patches that it has to predict since step 3"


@pytest.mark.parametrize(
    ("options", "first", "said"),
    [
        ({"leak": range(3, 20)}, LEAK, "try: take the targets' patches out of the context"),
        ({"loss": lambda step: math.nan}, "failing: nonfinite: NaN or infinite values since step 0", "try:"),
    ],
)
def test_summary_of_a_failing_run_opens_with_what_is_wrong_and_exits_with_one(
    tmp_path, capsys, options, first, said
):
    write_run(tmp_path, steps=20, **options)
    code, out, _ = run(capsys, "summary", str(tmp_path))
    assert code == 1
    assert out.splitlines()[2].startswith(first)
    assert said in out


def test_summary_names_findings_that_have_ended(tmp_path, capsys):
    write_run(tmp_path, steps=20, leak=range(2, 10))
    code, out, _ = run(capsys, "summary", str(tmp_path))
    assert code == 0
    assert out.splitlines()[2:4] == [
        "healthy",
        "  ended: mask_leak of step 7: the context sees patches that it has to predict",
    ]


@pytest.mark.parametrize("use_tensorboard", [True, False])
def test_summary_comes_to_the_verdict_of_the_run_itself(tmp_path, capsys, use_tensorboard):
    model = torch.nn.Linear(4, 24)
    config = {
        "log_dir": str(tmp_path),
        "log_frequency": 2,
        "cadence": {"representations": 2},
        "sync": "inline",
    }
    generator = torch.Generator().manual_seed(0)
    with TrainingMonitor(model, torch.optim.SGD(model.parameters(), lr=0.1), config) as monitor:
        for step in range(60):
            spread = 1.0 if step < 30 else 0.8 ** (step - 30)
            drawn = 1.0 + spread * torch.randn(8, 5, 24, generator=generator)
            monitor.step(samples=8, losses=0.5, features=drawn)
        live = monitor.health()
    where = tmp_path if use_tensorboard else tmp_path / "metrics"
    code, out, _ = run(capsys, "summary", str(where))
    assert (code, live.verdict, live.findings[0].name) == (1, "failing", "point_collapse")
    since = f"failing: point_collapse: {live.findings[0].title} since step {live.findings[0].since}: "
    assert str(live).startswith(since)
    assert out.splitlines()[2].startswith(since)


def test_compare_says_which_metric_parted_first(tmp_path, capsys):
    write_run(tmp_path, "a", loss=lambda step: 1.0)
    write_run(tmp_path, "b", loss=lambda step: 1.0 if step < 6 else 2.0, rank=30.5)
    code, out, _ = run(capsys, "compare", str(tmp_path))
    assert code == 1
    assert out.splitlines()[-1] == "Parted first, at step 6: loss/total"
    row = next(line for line in out.splitlines() if line.startswith("loss/total"))
    assert row.split() == ["loss/total", "1", "2", "6"]
    out = run(capsys, "compare", str(tmp_path), "--tolerance", "0.001")[1]
    assert out.splitlines()[-1] == "Parted first, at step 0: collapse/effective_rank"
    code, out, _ = run(capsys, "compare", str(tmp_path), "--tolerance", "2")
    assert code == 0
    assert "No common metric differs" in out


def test_compare_takes_paths_and_shows_settings_that_differ(tmp_path, capsys):
    write_run(tmp_path / "one", "run")
    with MetricsLogger("run", tmp_path / "two") as logger:
        logger.log_hparams({"model": {"embed_dim": 32}})
        logger.log_metrics({"loss/total": 1.0}, 0)
    code, out, _ = run(capsys, "compare", str(tmp_path / "one"), str(tmp_path / "two"))
    assert code == 0
    assert [line.split()[-2:] for line in out.splitlines() if line.startswith("model.embed_dim")] == [
        ["64", "32"]
    ]
    names = [loaded.name for loaded in load_each([str(tmp_path / "one"), str(tmp_path / "two")])]
    assert names == ["run", f"{tmp_path / 'two'}:run"]


def test_parting_by_hand():
    ones = [(0, 1.0), (1, 1.0), (2, 1.0)]
    assert parting(ones, [(0, 1.0), (1, 1.2), (2, 1.0)], 0.1) == 1
    assert parting(ones, [(0, 1.05), (2, 0.95)], 0.1) is None
    assert parting(ones, [(2, math.nan)], 0.1) == 2
    assert parting([(0, math.nan)], [(0, math.nan)], 0.1) is None
    assert parting([(0, 1.0)], [(0, math.inf)], 0.1) == 0
    assert parting([(0, 0.0)], [(0, 0.0)], 0.1) is None


def test_speed_does_not_count_as_parting(tmp_path):
    write_run(tmp_path, "a")
    with MetricsLogger("b", tmp_path) as logger:
        logger.log_metrics({"performance/samples_per_second": 1.0, "loss/total": 1.0}, 0)
    assert partings(load_runs(tmp_path), 0.01) == {}


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


class Page(HTMLParser):
    """Collect what a page refers to and how its elements nest."""

    def __init__(self):
        super().__init__()
        self.references, self.counts, self.open = [], {}, []

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.references += [value for name, value in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_is_one_page_with_findings_plots_and_configuration(tmp_path, capsys):
    write_run(tmp_path, leak=range(1, 10))
    target = tmp_path / "report.html"
    assert run(capsys, "report", str(tmp_path), "--output", str(target))[0] == 0
    text = target.read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.references == []
    assert page.counts["svg"] >= 3
    assert "script" not in page.counts
    assert '<h2 class="failing">failing: mask_leak: the context sees' in text
    assert "likely: context and target masks overlap" in text
    assert "<td>training.learning_rate</td><td>0.5</td>" in text


def test_a_chart_draws_every_stretch_between_gaps_and_escapes_names():
    chart = line_chart("a < b", {"x&y": [(0, 1.0), (1, 2.0), (2, math.nan), (3, 1.0), (4, 3.0)]})
    assert chart.count("<polyline") == 2
    assert "a &lt; b" in chart
    assert "x&amp;y" in chart
    assert "no finite value" in line_chart("t", {"x": [(0, math.nan)]})
    assert line_chart("t", {"x": [(5, 2.0)]}).count("<circle") == 1


def test_a_long_line_is_thinned_to_its_end():
    chart = line_chart("t", {"x": [(step, float(step)) for step in range(10_000)]})
    assert chart.count(",") < 1000
    assert ">9999<" in chart


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
        *("summary", "compare", "export", "grafana", "report", "explain", "doctor", "tensorboard")
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
