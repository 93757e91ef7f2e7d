"""The gradients benchmark at a tiny size: every way runs and has its error; no times are asserted."""

from pathlib import Path

import pytest

from tests.launch.test_benchmark import benchmark


def test_it_reports_every_way_with_its_error(tmp_path: Path):
    result = benchmark("gradients", "--scale", "0.001", "--rounds", "1", "--out", str(tmp_path), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "150 tensors" in result.stdout
    assert (tmp_path / "gradients.md").read_text().strip() == result.stdout.strip()
    rows = {line.split("|")[1].strip(): line for line in result.stdout.splitlines() if line.startswith("| ")}
    for name in (
        "clip: torch, foreach",
        "clip: ours",
        "statistics: .item() loop",
        "update against weights: ours",
    ):
        assert name in rows
    error = float(rows["statistics: ours"].split("|")[4])
    assert error == pytest.approx(0, abs=1e-6)
    assert "times torch's" in result.stdout
