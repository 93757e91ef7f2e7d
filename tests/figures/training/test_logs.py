"""Logs of every kind become series; smoothing is TensorBoard's."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.figures import Series, load_training_logs, smooth
from hjepa_dist_metrics.figures.training.series import as_runs
from hjepa_dist_metrics.sinks import JsonlSink, TensorBoardSink
from hjepa_dist_metrics.values import Scalar


def write_run(sink) -> None:
    for step in (0, 5, 10):
        sink.write(step, {"loss/total": Scalar(1.0 / (step + 1))})
    sink.close()


def check(series: Series) -> None:
    np.testing.assert_array_equal(series.steps, [0, 5, 10])
    np.testing.assert_allclose(series.values, [1, 1 / 6, 1 / 11], rtol=1e-7)


def test_event_files_and_json_lines_read_alike(tmp_path: Path):
    write_run(TensorBoardSink(tmp_path / "tensorboard/a", 0))
    write_run(JsonlSink(tmp_path / "metrics/b.jsonl"))
    runs = load_training_logs(tmp_path)
    assert set(runs) == {"a", "b"}
    for have in runs.values():
        check(have["loss/total"])


def test_json_of_columns_pairs_and_records(tmp_path: Path):
    (tmp_path / "c.json").write_text(
        json.dumps({"step": [0, 5, 10], "loss/total": [1, 1 / 6, 1 / 11], "note": "x"})
    )
    check(load_training_logs(tmp_path / "c.json")["c"]["loss/total"])
    (tmp_path / "p.json").write_text(json.dumps({"loss/total": [[0, 5, 10], [1, 1 / 6, 1 / 11]]}))
    check(load_training_logs(tmp_path / "p.json")["p"]["loss/total"])
    records = [{"step": s, "loss/total": 1 / (s + 1), "epoch": "first"} for s in (0, 5, 10)]
    (tmp_path / "r.json").write_text(json.dumps(records))
    check(load_training_logs(tmp_path / "r.json")["r"]["loss/total"])


def test_numpy_archives_and_arrays(tmp_path: Path):
    steps, values = np.array([0, 5, 10]), 1 / (np.array([0, 5, 10]) + 1.0)
    np.savez(tmp_path / "n.npz", **{"step": steps, "loss/total": values})
    check(load_training_logs(tmp_path / "n.npz")["n"]["loss/total"])
    table = np.array(list(zip(steps, values, strict=True)), dtype=[("step", "i8"), ("loss/total", "f8")])
    np.save(tmp_path / "t.npy", table)
    check(load_training_logs(tmp_path / "t.npy")["t"]["loss/total"])
    np.save(tmp_path / "plain.npy", values)
    np.testing.assert_array_equal(
        load_training_logs(tmp_path / "plain.npy")["plain"]["plain"].steps, [0, 1, 2]
    )


def test_several_paths_keep_runs_of_one_name_apart(tmp_path: Path):
    for folder in ("x", "y"):
        write_run(JsonlSink(tmp_path / folder / "run.jsonl"))
    runs = load_training_logs([tmp_path / "x/run.jsonl", tmp_path / "y/run.jsonl"], tags=["loss/total"])
    assert set(runs) == {"run", "run-2"}


def test_bad_logs_are_errors(tmp_path: Path):
    with pytest.raises(ConfigError, match="holds no scalars"):
        load_training_logs(tmp_path)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ConfigError, match=r"bad\.json is not JSON"):
        load_training_logs(tmp_path / "bad.json")
    (tmp_path / "bad.npz").write_bytes(b"x" * 10)
    with pytest.raises(ConfigError, match=r"bad\.npz as NumPy"):
        load_training_logs(tmp_path / "bad.npz")
    (tmp_path / "odd.json").write_text('{"a": [[0, 1], [1, 2, 3]]}')
    with pytest.raises(ConfigError, match=r"odd\.json: .*'a'"):
        load_training_logs(tmp_path / "odd.json")
    write_run(JsonlSink(tmp_path / "run.jsonl"))
    with pytest.raises(ConfigError, match=r"no tag 'loss/h0'; they have loss/total"):
        load_training_logs(tmp_path / "run.jsonl", tags=["loss/h0"])


def test_smoothing_by_hand():
    """w = 0.5 over 1, 2, 4: 0.5 / 0.5 = 1; (0.25 + 1) / 0.75 = 5/3; (0.625 + 2) / 0.875 = 3."""
    np.testing.assert_allclose(smooth([1, 2, 4], 0.5), [1, 5 / 3, 3], rtol=1e-14)


def test_smoothing_by_step_distance_is_a_mean_with_weights_of_the_distance():
    """Against the sums, written out; points at one place count alike, and those far away not at all."""
    steps, values = np.array([0.0, 1.0, 2.0, 150.0, 200.0]), np.array([4.0, 2.0, 1.0, 7.0, 3.0])
    weights = [[0.5 ** (t - s) if s <= t else 0.0 for s in steps] for t in steps]
    expected = [np.dot(w, values) / np.sum(w) for w in weights]
    np.testing.assert_allclose(smooth(values, 0.5, steps), expected, rtol=1e-12)
    np.testing.assert_allclose(smooth(values, 0.5, 100 + 7 * steps), expected, rtol=1e-12)
    assert smooth(values, 0.5, steps)[3] == pytest.approx(7.0, abs=1e-12)
    np.testing.assert_array_equal(smooth([5.0], 0.9, [3.0]), [5.0])


def test_smoothing_passes_over_nonfinite_values_and_leaves_constants():
    smoothed = smooth([1, math.nan, 2, math.inf, 4], 0.5)
    np.testing.assert_allclose(smoothed[[0, 2, 4]], [1, 5 / 3, 3], rtol=1e-14)
    assert math.isnan(smoothed[1])
    assert smoothed[3] == math.inf
    np.testing.assert_array_equal(smooth([0.1] * 5, 0.9), [0.1] * 5)
    np.testing.assert_array_equal(smooth([3.0, 1.0], 0.0), [3.0, 1.0])
    with pytest.raises(ConfigError, match="smoothing is 1"):
        smooth([1.0, 2.0], 1.0)


def test_what_users_have_at_hand_becomes_runs():
    runs = as_runs({"train_loss": [3.0, 2.0], "val_loss": ([0, 10], [3.5, 2.5])})
    np.testing.assert_array_equal(runs[""]["train_loss"].steps, [0, 1])
    np.testing.assert_array_equal(runs[""]["val_loss"].steps, [0, 10])
    assert set(as_runs({"a": {"x": [1.0]}, "b": {"x": [2.0]}})) == {"a", "b"}
    with pytest.raises(ConfigError, match="at least one tag"):
        as_runs({})
    with pytest.raises(ConfigError, match="'x' needs as many steps as values"):
        as_runs({"x": ([1, 2], [1.0])})
