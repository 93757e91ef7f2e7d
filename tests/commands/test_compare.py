"""What `compare` opens with: the numbers that parted first, then verdicts and settings."""

import math

from hjepa_dist_metrics import MetricsLogger
from hjepa_dist_metrics.commands.compare import parting, partings
from hjepa_dist_metrics.commands.runs import load_each, load_runs
from tests.helpers.cli import run, write_run


def test_compare_says_which_metric_parted_first(tmp_path, capsys):
    write_run(tmp_path, "a", loss=lambda step: 1.0)
    write_run(tmp_path, "b", loss=lambda step: 1.0 if step < 6 else 2.0, rank=30.5)
    code, out, _ = run(capsys, "compare", str(tmp_path))
    assert code == 1
    assert out.splitlines()[0] == "The runs part by over 5 % first at step 6, in loss/total."
    row = next(line for line in out.splitlines() if line.startswith("loss "))
    assert row.split() == ["loss", "1", "2", "6"]
    out = run(capsys, "compare", str(tmp_path), "--tolerance", "0.001")[1]
    assert out.splitlines()[0] == "The runs part by over 0.1 % first at step 0, in collapse/effective_rank."
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


def test_what_matters_comes_before_what_parts_earlier(tmp_path, capsys):
    for name, factor in (("a", 1.0), ("b", 2.0)):
        with MetricsLogger(name, tmp_path) as logger:
            for step in range(10):
                late = factor if step > 5 else 1.0
                logger.log_metrics({"loss/total": late, "val/loss": late, "own/tag": factor}, step)
    code, out, _ = run(capsys, "compare", str(tmp_path))
    assert code == 1
    assert out.splitlines()[0] == "The runs part by over 5 % first at step 6, in loss/total, val/loss."
    assert "own/tag" not in out
    everything = run(capsys, "compare", str(tmp_path), "--all")[1].splitlines()
    (row,) = [line for line in everything if line.startswith("own/tag")]
    assert row.split() == ["own/tag", "1", "2", "0"]


def test_lines_fit_80_columns_with_many_long_names(tmp_path, capsys):
    names = [f"a_run_with_a_rather_long_name_{i}" for i in range(6)]
    for number, name in enumerate(names):
        write_run(tmp_path, name, rank=30.0 + number)
    out = run(capsys, "compare", str(tmp_path), "--all")[1]
    assert max(map(len, out.splitlines())) <= 80
    assert all(name in out for name in names)
    assert "A = a_run_with_a_rather_long_name_0;" in out
