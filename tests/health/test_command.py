"""`launch/benchmark.py health`: what it prints and writes, and what it says where there is nothing."""

from pathlib import Path

import pytest
from benchmarks.health.catalogue import all_runs
from benchmarks.health.command import chosen, main
from benchmarks.health.traces import Trace

from hjepa_dist_metrics import ConfigError


def store(folder: Path, failure: str | None, held_out: bool = False, measure: str | None = None) -> None:
    run = {
        "recipe": "vicreg",
        "seed": 2 if held_out else 0,
        "failure": failure,
        "planted_at": None if failure is None else 50,
        "expect": None if failure is None else "nonfinite",
        "accept": [],
        "measure": measure,
        "held_out": held_out,
    }
    steps = range(0, 100, 10)
    logs = [(s, {"loss/total": 1.0, "loss/nonfinite": float(failure is not None and s >= 50)}) for s in steps]
    Trace(
        f"{failure or 'healthy'}-vicreg-s{run['seed']}", run, logs, [(s, {"knn": 0.5}) for s in steps]
    ).save(folder)


def replay(folder: Path, out: Path, *arguments: str) -> int:
    return main(["--traces", str(folder), "--out", str(out), *arguments])


def test_the_tables_and_the_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    store(tmp_path, None)
    store(tmp_path, "nan_loss")
    assert replay(tmp_path, tmp_path / "out", "--details") == 0
    printed = capsys.readouterr().out
    assert "| nan_loss | nonfinite | 1 | 100 % | 100 % | 100 % | 0 | 0 | 100 % |" in printed
    assert "| vicreg | 1 | 10 | 0.0 | 0 |  |" in printed
    assert "| judge | 100 % | 100 % | 100 % | 100 % | 0 % | 0.0 |" in printed
    assert (tmp_path / "out/health.md").read_text().strip() == printed.strip()
    assert (tmp_path / "out/health.png").stat().st_size > 0


def test_runs_are_chosen_by_name_and_the_held_out_ones_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for held_out in (False, True):
        store(tmp_path, None, held_out)
        store(tmp_path, "nan_loss", held_out)
    assert replay(tmp_path, tmp_path, "--no-plot", "nan*") == 0
    assert "| vicreg |" not in capsys.readouterr().out
    assert replay(tmp_path, tmp_path, "--no-plot", "--held-out", "healthy*") == 0
    assert "nan_loss" not in capsys.readouterr().out


def test_a_failure_without_its_healthy_run_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    store(tmp_path, None)
    store(tmp_path, "lost_gradients", measure="gradient")
    assert replay(tmp_path, tmp_path, "--no-plot") == 0
    printed = capsys.readouterr().out
    assert "1 failing runs are left out" in printed
    assert "lost_gradients" not in printed.split("left out", 1)[1]


def test_no_traces_are_an_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="record them with --record"):
        replay(tmp_path, tmp_path)


def test_patterns_choose_runs_to_record():
    found = chosen(all_runs(), ["few_codes-*-s0", "healthy-mae-*"])
    assert {run.recipe if run.failure is None else run.failure.name for run in found} == {"mae", "few_codes"}
