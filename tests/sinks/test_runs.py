"""Run names: never shared by accident."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.sinks import claim_run_name, jsonl_path, tensorboard_dir


def test_paths_are_where_the_readme_says():
    assert str(tensorboard_dir("logs", "run")) == "logs/tensorboard/run"
    assert str(jsonl_path("logs", "run")) == "logs/metrics/run.jsonl"


def test_a_taken_name_gets_a_suffix_and_resume_keeps_it(tmp_path):
    assert [claim_run_name(tmp_path, "run") for _ in range(3)] == ["run", "run-2", "run-3"]
    assert claim_run_name(tmp_path, "run-2", resume=True) == "run-2"
    assert claim_run_name(tmp_path, "new", resume=True) == "new"


def test_a_name_is_taken_by_json_lines_alone(tmp_path):
    jsonl_path(tmp_path, "run").parent.mkdir()
    jsonl_path(tmp_path, "run").write_text("")
    assert claim_run_name(tmp_path, "run") == "run-2"


def test_names_may_be_nested(tmp_path):
    assert [claim_run_name(tmp_path, "sweep/a") for _ in range(2)] == ["sweep/a", "sweep/a-2"]


def test_claims_at_once_differ(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda _: claim_run_name(tmp_path, "run"), range(24)))
    assert len(set(names)) == 24


def test_an_unwritable_place_is_left_to_the_sinks(tmp_path):
    (tmp_path / "taken").write_text("")
    assert claim_run_name(tmp_path / "taken", "run") == "run"
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "file").write_text("")
    assert claim_run_name(tmp_path, "file") == "file"


@pytest.mark.parametrize("name", ["", " ", ".", "..", "../x", "a/../../x", "/tmp/x"])
def test_names_that_leave_the_directory_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="experiment_name"):
        claim_run_name(tmp_path, name)
