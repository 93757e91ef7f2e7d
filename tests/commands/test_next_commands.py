"""The commands that a run ends with are ones that the command line takes, and show that run."""

import shlex

import pytest

from hjepa_dist_metrics import LoggingConfig
from hjepa_dist_metrics.cli import parser
from hjepa_dist_metrics.reference.summary import next_commands
from hjepa_dist_metrics.settings.outputs import JsonlConfig, TensorBoardConfig
from tests.helpers.cli import run, write_run


def test_what_a_run_ends_with_shows_that_run(tmp_path, capsys):
    logs = tmp_path / "with a blank"
    write_run(logs, "first run")
    write_run(logs, "second", leak=range(10))
    config = LoggingConfig(experiment_name="first run", log_dir=str(logs))
    lines = [shlex.split(line.split(":", 1)[1])[1:] for line in next_commands(config, "first run")]
    assert [arguments[0] for arguments in lines] == ["summary", "report", "tensorboard"]
    for arguments in lines:
        parser().parse_args(arguments)
    code, out, _ = run(capsys, *lines[0])
    assert (code, out.splitlines()[0]) == (0, "Run first run: 10 steps, 7 tags")


@pytest.mark.parametrize(
    ("tensorboard", "jsonl", "commands"),
    [(True, True, 3), (True, False, 3), (False, True, 2), (False, False, 0)],
)
def test_only_commands_that_have_files_to_show(tensorboard, jsonl, commands):
    config = LoggingConfig(
        tensorboard=TensorBoardConfig(enabled=tensorboard), jsonl=JsonlConfig(enabled=jsonl)
    )
    assert len(list(next_commands(config, "run"))) == commands
