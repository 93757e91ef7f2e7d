"""What `hjepa-metrics export` writes is safe to open, and what any command prints is safe to read."""

import csv
import io
import json
import shutil
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from hjepa_dist_metrics.cli import main
from hjepa_dist_metrics.commands.export import cell, write_prometheus, write_text
from hjepa_dist_metrics.commands.table import printable
from hjepa_dist_metrics.sinks import JsonlSink
from hjepa_dist_metrics.values import Scalar

BAD = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "a\x1b[31mred", "a\x00b", "line\nbreak"]
BAD += ["x\udc80", 'q"uote']


def log(path, tags, run="run"):
    sink = JsonlSink(path / "metrics" / f"{run}.jsonl")
    for step in range(2):
        sink.write(step, {tag: Scalar(step + 0.5) for tag in tags})
    sink.close()


def export(logs, capsys, kind):
    assert main(["export", str(logs), "--format", kind]) == 0
    return capsys.readouterr().out


def test_cells_that_begin_a_formula_are_defused(tmp_path, capsys):
    log(tmp_path, ["loss", *BAD])
    rows = list(csv.DictReader(io.StringIO(export(tmp_path, capsys, "csv"))))
    tags = {row["tag"] for row in rows}
    assert {"loss", "'=1+1", "'+1", "'-1", "'@SUM(A1)", "a\\x1b[31mred", "line\\nbreak"} <= tags
    assert len(tags) == 1 + len(BAD)
    assert not any(tag.startswith(("=", "+", "-", "@")) for tag in tags)
    assert {row["value"] for row in rows} == {"0.5", "1.5"}


@given(st.text())
def test_no_name_is_a_formula_or_a_control_character(name):
    assert not cell(name).startswith(("=", "+", "-", "@", "\t", "\r"))
    assert cell(name).isprintable()
    assert printable(printable(name)) == printable(name)
    cell(name).encode()


@pytest.mark.parametrize(
    "command", [["summary", "--all"], ["compare", "--all"], ["export", "--format", "csv"]]
)
def test_control_characters_never_reach_a_terminal(tmp_path, capsys, command):
    log(tmp_path / "logs", ["loss/total", *BAD])
    log(tmp_path / "logs", ["loss/total", *BAD], "other")
    main([command[0], str(tmp_path / "logs"), *command[1:]])
    main([command[0], str(tmp_path / "absent\x1b[2J")])
    printed = capsys.readouterr()
    assert all(line.isprintable() for line in [*printed.out.split("\n"), *printed.err.split("\n")])
    assert "a\\x1b[31mred" in printed.out
    assert "absent\\x1b[2J" in printed.err


def test_json_lines_and_parquet_hold_every_name(tmp_path, capsys):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow (extra parquet) is not installed")
    log(tmp_path, BAD)
    lines = [json.loads(line) for line in export(tmp_path, capsys, "jsonl").splitlines()]
    target = str(tmp_path / "x.parquet")
    assert main(["export", str(tmp_path), "--format", "parquet", "--output", target]) == 0
    assert parquet.read_table(target).to_pylist() == lines
    assert {line["tag"] for line in lines} == {*BAD[:-2], "x\\udc80", 'q"uote'}


def test_prometheus_has_the_last_number_of_each_tag(tmp_path, capsys):
    log(tmp_path, ["loss/h0", "loss/h1", "mine/a-b"])
    lines = export(tmp_path, capsys, "prometheus").splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        'hjepa_loss_h{run="run",i="0"} 1.5',
        'hjepa_loss_h{run="run",i="1"} 1.5',
        'hjepa_user_mine_a_b{run="run",tag="mine/a-b"} 1.5',
    ]
    assert "# HELP hjepa_loss_h loss of level {i}" in lines
    assert "# TYPE hjepa_loss_h gauge" in lines


ROWS = st.lists(st.tuples(st.text(), st.text(), st.integers(-(2**63), 2**63 - 1), st.floats()), min_size=1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS)
def test_any_names_and_numbers_make_files_that_read_back(rows):
    table, lines = io.StringIO(newline=""), io.StringIO()
    write_text(iter(rows), "csv", table)
    write_text(iter(rows), "jsonl", lines)
    read = list(csv.reader(io.StringIO(table.getvalue(), newline="")))
    assert [(row[0], row[1], int(row[2])) for row in read[1:]] == [
        (cell(a), cell(b), s) for a, b, s, _ in rows
    ]
    assert [repr(float(row[3])) for row in read[1:]] == [repr(value) for *_, value in rows]
    assert [json.loads(line)["step"] for line in lines.getvalue().splitlines()] == [
        step for *_, step, _ in rows
    ]


@settings(max_examples=10)
@given(ROWS)
def test_promtool_accepts_what_any_names_and_numbers_make(rows):
    if shutil.which("promtool") is None:
        pytest.skip("no promtool on this machine (apt-get install prometheus)")
    page = io.StringIO()
    write_prometheus(iter(rows), page)
    run = subprocess.run(
        ["promtool", "check", "metrics"], input=page.getvalue().encode(), capture_output=True, check=False
    )
    assert run.returncode in (0, 3), run.stderr.decode()  # 3: lint about names alone
    assert b"error while linting" not in run.stderr
