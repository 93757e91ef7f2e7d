"""Run names: never shared by accident."""

import os
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


@pytest.mark.parametrize("name", ["", " ", ".", "..", "../x", "a/../../x", "/tmp/x", "x" * 300, "a\0b"])
def test_names_that_leave_the_directory_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="experiment_name"):
        claim_run_name(tmp_path, name)


@pytest.fixture
def elastic(monkeypatch):
    """Give what torchrun sets: `elastic(job, attempt, process)`; such a process is dead unless it is ours."""

    def set_attempt(job, attempt, process, launcher=4_100_000):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))
        monkeypatch.setattr(os, "getpid", lambda: process)
        monkeypatch.setattr(os, "getppid", lambda: launcher)

    return set_attempt


ALIVE = os.getpid()
DEAD = 4_194_305  # above the largest process number of Linux


def test_attempts_of_one_elastic_job_are_one_run(tmp_path, elastic):
    elastic("job", 0, DEAD)
    assert [claim_run_name(tmp_path, "run") for _ in range(2)] == ["run", "run"]  # died and began anew
    elastic("job", 1, DEAD + 1)
    assert claim_run_name(tmp_path, "run") == "run"
    jsonl_path(tmp_path, "run").parent.mkdir()
    jsonl_path(tmp_path, "run").write_text('{"step": 0}\n')
    elastic("job", 2, DEAD + 2)
    assert claim_run_name(tmp_path, "run") == "run"


def test_two_runs_of_one_attempt_are_two_and_stay_two(tmp_path, elastic):
    for attempt in range(3):
        elastic("job", attempt, ALIVE if attempt == 2 else DEAD + attempt)
        first = claim_run_name(tmp_path, "a"), claim_run_name(tmp_path, "b")
        assert first == ("a", "b")
    assert claim_run_name(tmp_path, "a") == "a-2"  # this process lives: it has `a` already


@pytest.mark.parametrize(
    ("job", "attempt", "launcher"), [("other", 1, 4_100_000), ("none", 1, 4_100_000), ("job", 0, 4_100_001)]
)
def test_another_job_never_takes_a_run_over(tmp_path, elastic, job, attempt, launcher):
    elastic("job", 0, DEAD)
    assert claim_run_name(tmp_path, "run") == "run"
    elastic(job, attempt, DEAD + 1, launcher)
    assert claim_run_name(tmp_path, "run") == "run-2"


def test_of_processes_that_would_join_at_once_one_does(tmp_path, elastic):
    for place in map(str, range(50)):
        elastic("job", 0, DEAD)
        claim_run_name(tmp_path / place, "run")
        elastic("job", 1, ALIVE)
        with ThreadPoolExecutor(8) as pool:
            names = list(pool.map(lambda _, place=place: claim_run_name(tmp_path / place, "run"), range(8)))
        assert len(set(names)) == 8
        assert "run" in names


@pytest.mark.parametrize("mark", ["", "{", "[]", '{"job": "job"}'])
def test_a_mark_that_is_damaged_joins_nothing(tmp_path, elastic, mark):
    elastic("job", 0, DEAD)
    claim_run_name(tmp_path, "run")
    (tensorboard_dir(tmp_path, "run") / ".torchelastic.json").write_text(mark)
    elastic("job", 1, DEAD + 1)
    assert claim_run_name(tmp_path, "run") == "run-2"
