"""The commands that a run ends with are ones that the command line takes, and show that run."""

import shlex

import pytest

from hjepa_dist_metrics import LoggingConfig
from hjepa_dist_metrics.cli import parser
from hjepa_dist_metrics.monitor import Health
from hjepa_dist_metrics.reference.summary import next_commands, next_steps
from hjepa_dist_metrics.reference.trainer import Outcome
from hjepa_dist_metrics.settings.outputs import JsonlConfig, TensorBoardConfig
from tests.helpers.cli import run, write_run


def test_what_a_run_ends_with_shows_that_run(tmp_path, capsys):
    logs = tmp_path / "with a blank"
    write_run(logs, "first run")
    write_run(logs, "second", leak=range(10))
    config = LoggingConfig(experiment_name="first run", log_dir=str(logs))
    outcome = Outcome({}, {}, 10, "first run", Health(), [], [])
    words = [shlex.split(line) for line in next_steps(outcome, config)]
    commands = [line[2:] for line in words if line[1].endswith("hjepa-metrics")]
    assert [arguments[0] for arguments in commands] == ["summary", "report", "tensorboard"]
    for arguments in commands:
        parser().parse_args(arguments)
    code, out, _ = run(capsys, *commands[0])
    assert (code, out.splitlines()[0]) == (0, "Run first run: 10 steps, 7 tags")


@pytest.mark.parametrize(
    ("tensorboard", "jsonl", "commands"),
    [(True, True, 3), (True, False, 3), (False, True, 2), (False, False, 0)],
)
def test_only_commands_that_have_files_to_show(tensorboard, jsonl, commands):
    config = LoggingConfig(
        tensorboard=TensorBoardConfig(enabled=tensorboard), jsonl=JsonlConfig(enabled=jsonl)
    )
    assert len(next_commands(config, "run")) == commands
