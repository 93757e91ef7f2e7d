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


def write_run(log_dir, name="run", rank=30.0, alert=(), loss=None, steps=10, **options):
    with MetricsLogger(name, log_dir, **options) as logger:
        logger.log_hparams({"model": {"embed_dim": 64}, "training": {"learning_rate": 0.5}})
        for step in range(steps):
            values = {"loss/total": loss(step) if loss else 1.0 / (1 + step)}
            values |= {"collapse/effective_rank": rank, "collapse/num_samples": 1000, "own/tag": step}
            values |= {
                "alerts/collapse": float(step in alert),
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
    (line,) = [line for line in out.splitlines() if line.startswith("collapse/effective_rank")]
    assert re.search(r"\b30\b +30\b.* ok ", line)
    assert "No alert fired." in out
    assert "own/tag" not in out
    assert "own/tag" in run(capsys, "summary", str(tmp_path), "--all")[1]
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 1.5}, "bad"),
        ({"alert": (3, 4, 7)}, "collapse fired from step 3 to step 4"),
        ({"alert": (8, 9)}, "collapse fired from step 8 to the end"),
        ({"loss": lambda step: math.nan}, "nan"),
    ],
)
def test_summary_of_a_sick_run_exits_with_one(tmp_path, capsys, options, said):
    write_run(tmp_path, **options)
    code, out, _ = run(capsys, "summary", str(tmp_path))
    assert code == 1
    assert said in out


def test_summary_takes_the_width_from_the_command_line(tmp_path, capsys):
    write_run(tmp_path, rank=3.0)  # of 64 dimensions that is bad, of 4 it is fine
    assert run(capsys, "summary", str(tmp_path))[0] == 1
    assert run(capsys, "summary", str(tmp_path), "--dim", "4")[0] == 0


def monitored_run(log_dir, steps=6, streams=None, loss=0.5):
    model = torch.nn.Linear(4, 24)
    config = {
        "log_dir": str(log_dir),
        "log_frequency": 2,
        "cadence": {"representations": 2},
        "sync": "inline",
    }
    with TrainingMonitor(model, torch.optim.SGD(model.parameters(), lr=0.1), config) as monitor:
        for step in range(steps):
            drawn = torch.randn(8, 5, 24, generator=torch.Generator().manual_seed(step))
            monitor.step(samples=8, losses=loss, features=streams(drawn) if streams else drawn)


def verdicts(out):
    rows = [line.split() for line in out.splitlines()[3:] if "/" in line]
    return {
        row[0]: next((word for word in row[3:] if word in ("ok", "warn", "bad", "-")), "") for row in rows
    }


@pytest.mark.parametrize("use_tensorboard", [True, False])
def test_summary_knows_the_width_of_the_run_by_itself(tmp_path, capsys, use_tensorboard):
    monitored_run(tmp_path)
    where = tmp_path if use_tensorboard else tmp_path / "metrics"
    code, out, _ = run(capsys, "summary", str(where))
    found = verdicts(out)
    assert code == 0
    for name in ("effective_rank", "mean_std_per_dim", "mean_similarity", "lidar", "pooled_effective_rank"):
        assert found[f"collapse/{name}"] == "ok", out
    for tag in ("loss/nonfinite", "collapse/nonfinite", "stability/nonfinite_steps"):
        assert found[tag] == "ok", out
    assert found["performance/monitor_overhead_percent"] in ("ok", "warn")
    assert found["collapse/pooled_mean_similarity"] == "-"


def test_each_stream_is_judged_by_its_own_width(tmp_path, capsys):
    # 6 of 6 dimensions are all there are; 6 of 24 would be a warning
    monitored_run(tmp_path, streams=lambda x: {"wide": x, "narrow": x[..., :6]})
    found = verdicts(run(capsys, "summary", str(tmp_path), "--all")[1])
    assert found["collapse/narrow_effective_rank"] == found["collapse/wide_effective_rank"] == "ok"
    found = verdicts(run(capsys, "summary", str(tmp_path), "--all", "--dim", "96")[1])
    assert found["collapse/narrow_effective_rank"] == "warn"


def test_summary_finds_what_is_not_finite(tmp_path, capsys):
    monitored_run(tmp_path, loss=math.nan)
    code, out, _ = run(capsys, "summary", str(tmp_path))
    assert code == 1
    assert verdicts(out)["loss/nonfinite"] == verdicts(out)["stability/nonfinite_steps"] == "bad"


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
    write_run(tmp_path, rank=1.5, alert=(3,))
    target = tmp_path / "report.html"
    assert run(capsys, "report", str(tmp_path), "--output", str(target))[0] == 0
    text = target.read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.references == []
    assert page.counts["svg"] >= 3
    assert "script" not in page.counts
    assert '<li class="bad">bad: collapse/effective_rank = 1.5' in text
    assert "alert: collapse fired at step 3" in text
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
    assert "a.jsonl" in err
    assert len(err.strip().splitlines()) == 1


def test_several_runs_are_told_apart(tmp_path, capsys):
    write_run(tmp_path, "a")
    write_run(tmp_path, "b", rank=1.5)
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
