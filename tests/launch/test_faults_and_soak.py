"""The fault table and the soak: short runs of both, and that what they judge by can fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.faults.cases import FAULT_AT, FAULTS, ROWS, SYNCS, expected_mean
from benchmarks.faults.command import report, victims
from benchmarks.faults.judge import HANG, HELD, WRONG_ERROR, WRONG_NUMBER, judge
from benchmarks.soak.growth import ALLOWED, growth
from benchmarks.soak.points import compare

ROOT = Path(__file__).resolve().parents[2]


def benchmark(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "launch/benchmark.py"), *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        stdin=subprocess.DEVNULL,
    )


def test_a_few_faults_are_held(tmp_path):
    cases = ("none", "SIGKILL", "another width")
    result = benchmark(
        *("faults", "--ranks", "2", "--modes", "background", "--cases", *cases, "--out", str(tmp_path)),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    cells = json.loads((tmp_path / "faults.json").read_text())
    assert [(cell["runs"], cell["verdicts"][HELD]) for cell in cells] == [(2, 2)] * len(cases)
    assert "| all |  |  | 6 | 6 | 0 | 0 | 0 |" in result.stdout


def test_a_short_soak_is_held(tmp_path):
    result = benchmark(*("soak", "--minutes", "0.2", "--kills", "2", "--out", str(tmp_path)), cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads((tmp_path / "soak.json").read_text())
    assert len(found["kills"]) == 2
    assert found["last step"] > found["calm steps"] >= 75
    for files in found["points"].values():
        assert files["expected"] == found["last step"] // 5 + 1
        assert files["lost"] == files["doubled"] == []


KILLED = next(fault for fault in FAULTS if "SIGKILL" in fault.name)
NONE = FAULTS[0]


def answer(syncs=FAULT_AT, error="RankFailureError", ranks=(1,), text="rank 1 ended", **more):
    values = [expected_mean(2, sync) for sync in range(syncs)]
    rows = [float(ROWS * 2 * (sync + 1)) for sync in range(syncs)]
    return {
        "values": values,
        "rows": rows,
        "error": error,
        "ranks": ranks,
        "text": text,
        "left": False,
        **more,
    }


@pytest.mark.parametrize(
    ("fault", "answers", "verdict"),
    [
        (KILLED, {0: answer()}, HELD),
        (KILLED, {}, HANG),
        (KILLED, {0: answer(values=[9.0] * FAULT_AT)}, WRONG_NUMBER),
        (KILLED, {0: answer(ranks=(0,), text="rank 0 ended")}, WRONG_ERROR),
        (KILLED, {0: answer(error="DesyncError")}, WRONG_ERROR),
        (KILLED, {0: answer(SYNCS, None, (), "")}, WRONG_ERROR),
        (NONE, {rank: answer(SYNCS, None, (), "") for rank in range(2)}, HELD),
        (NONE, {rank: answer() for rank in range(2)}, WRONG_ERROR),
        (NONE, {0: answer(SYNCS, None, (), "")}, HANG),
    ],
)
def test_what_became_of_a_run(fault, answers, verdict):
    assert judge(fault, 2, 1, answers) == verdict


def test_what_is_not_held_is_shown():
    verdicts = {HELD: 1, HANG: 1, WRONG_NUMBER: 0, WRONG_ERROR: 0}
    odd = [{"victim": 1, "verdict": HANG, "answers": {}}]
    cell = {"case": "c", "mode": "inline", "ranks": 2, "runs": 2, "verdicts": verdicts, "not held": odd}
    text = report([cell])
    assert "| c | inline | 2 | 2 | 1 | 1 | 0 | 0 |" in text
    assert "c, inline, 2 ranks: {'victim': 1, 'verdict': 'hangs'" in text


def test_the_victims_of_many_ranks_are_spread():
    assert victims(3) == [0, 1, 2]
    assert victims(8) == [0, 2, 5, 7]


@pytest.mark.parametrize("kind", ALLOWED)
def test_what_grows_is_seen(kind):
    flat = [dict.fromkeys(ALLOWED, 100) for _ in range(40)]
    assert all(found["flat"] for found in growth(flat).values())
    rising = [{**sample, kind: 100 + i * (ALLOWED[kind] // 10 + 1)} for i, sample in enumerate(flat)]
    assert [name for name, found in growth(rising).items() if not found["flat"]] == [kind]


def test_points_that_are_lost_or_doubled_are_named():
    assert (compare([0, 5, 10], 10).lost, compare([0, 5, 10], 10).doubled) == ([], [])
    found = compare([0, 5, 5, 7, 15], 15)
    assert (found.expected, found.lost, found.doubled) == (4, [10], [5, 7])
