"""Traces: what is stored comes back, and the catalogue is what the stored ones were recorded by."""

import math
from pathlib import Path

import pytest
from benchmarks.health.catalogue import RECIPES, all_runs, is_held_out
from benchmarks.health.failures.registry import FAILURES
from benchmarks.health.traces import FOLDER, SUFFIX, Trace, load_trace, load_traces

from hjepa_dist_metrics import ConfigError
from hjepa_dist_metrics.catalog.findings import FINDINGS

# Failures that no finding tells of: they stay in the table as missed.
UNTOLD = {"term_imbalance"}


def same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def test_numbers_come_back_with_six_digits_nan_and_infinity_included(tmp_path: Path):
    logs = [
        (0, {"a": 1.0, "b": math.nan}),
        (0, {"c": math.inf}),
        (5, {"a": 1.23456789e-7, "c": -math.inf}),
        (10, {"b": 3.0}),
    ]
    path = Trace("one", {"held_out": False}, logs, [(0, {"knn": 0.5})]).save(tmp_path)
    back = load_trace(path)
    assert back.name == "one"
    assert [step for step, _ in back.logs] == [0, 0, 5, 10]
    assert [set(numbers) for _, numbers in back.logs] == [set(numbers) for _, numbers in logs]
    assert all(
        same(back_numbers[tag], float(f"{value:.6g}"))
        for (_, numbers), (_, back_numbers) in zip(logs, back.logs, strict=True)
        for tag, value in numbers.items()
    )
    assert back.facts == [(0, {"knn": 0.5})]


def test_what_is_no_trace_is_an_error_that_names_the_file(tmp_path: Path):
    path = tmp_path / f"bad{SUFFIX}"
    path.write_bytes(b"not compressed")
    with pytest.raises(ConfigError, match=r"bad\.json\.xz is no trace"):
        load_trace(path)


def test_held_out_runs_are_read_apart(tmp_path: Path):
    for held_out in (False, True):
        Trace(f"held{held_out}", {"held_out": held_out}, []).save(tmp_path)
    assert [trace.name for trace in load_traces(folder=tmp_path)] == ["heldFalse"]
    assert [trace.name for trace in load_traces(held_out=True, folder=tmp_path)] == ["heldTrue"]


def test_the_catalogue_is_as_large_as_promised():
    runs = all_runs()
    assert len({run.name for run in runs}) == len(runs)
    assert len(RECIPES) >= 8
    assert len(FAILURES) >= 25
    healthy = [run for run in runs if run.failure is None]
    assert len(healthy) >= 60
    for recipe in RECIPES:
        settings = {run.setting for run in healthy if run.recipe == recipe}
        assert {setting.seed for setting in settings} == {0, 1, 2}
        assert len({setting.rate_factor for setting in settings}) == 2
    held_out = [run for run in runs if is_held_out(run.setting.seed)]
    assert 3 * len(held_out) == len(runs)


@pytest.mark.parametrize("name", sorted({run.failure.name for run in all_runs() if run.failure}))
def test_each_failure_has_a_finding_three_seeds_and_its_strengths(name: str):
    failure = FAILURES[name]
    assert {failure.finding, *failure.accept} - UNTOLD <= FINDINGS.keys()
    assert failure.finding in FINDINGS or failure.finding in UNTOLD
    assert failure.plant.__doc__
    runs = [run for run in all_runs() if run.failure is failure]
    assert {(run.setting.seed, run.strength) for run in runs} == {
        (seed, strength) for seed in (0, 1, 2) for strength in failure.strengths
    }


def test_stored_traces_are_runs_of_the_catalogue():
    specs = {run.name: run for run in all_runs()}
    files = sorted(FOLDER.glob(f"*{SUFFIX}"))
    assert files
    assert sum(file.stat().st_size for file in files) < 8e6
    for trace in [*load_traces(), *load_traces(held_out=True)]:
        spec = specs[trace.name]
        assert trace.run["held_out"] == is_held_out(spec.setting.seed)
        assert trace.run["planted_at"] == spec.planted_at
        assert trace.run["steps"] == spec.steps
        assert trace.run["expect"] == (spec.failure and spec.failure.finding)
        assert trace.run["measure"] == (spec.failure and spec.failure.measure)
        assert trace.run["accept"] == ([] if spec.failure is None else [*spec.failure.accept])
        assert len(trace.logs) >= (25 if spec.ranks == 1 else 18)
