"""Where a run's files lie, and how two runs never share a file by accident."""

from __future__ import annotations

import itertools
from pathlib import Path

from hjepa_dist_metrics.settings.run_name import check_run_name
from hjepa_dist_metrics.sinks import job
from hjepa_dist_metrics.sinks.jsonl import read_jsonl


def tensorboard_dir(log_dir: str | Path, run_name: str) -> Path:
    """Return the directory of a run's event files."""
    return Path(log_dir) / "tensorboard" / run_name


def jsonl_path(log_dir: str | Path, run_name: str) -> Path:
    """Return the path of a run's JSON lines."""
    return Path(log_dir) / "metrics" / f"{run_name}.jsonl"


def wandb_dir(log_dir: str | Path) -> Path:
    """Return the directory of all runs' Weights & Biases files."""
    return Path(log_dir) / "wandb_runs"


def mlflow_dir(log_dir: str | Path) -> Path:
    """Return the directory of the ids of all runs' MLflow runs."""
    return Path(log_dir) / "mlflow_runs"


def claim_run_name(log_dir: str | Path, experiment_name: str, resume: bool = False) -> str:
    """Return the name to write under, and take it: `name`, or `name-2`, `name-3`, ... where it is taken.

    With `resume` the name stays as it is, and so it does where an earlier attempt of the same elastic job
    (TORCHELASTIC_RUN_ID) took it and died: one job is one run. Two processes that claim at once get two
    names, because making the directory is what claims. Call it on one rank and send the answer to the others.
    A directory that cannot be made is not an error here: the sinks say so when they open.
    Raises ConfigError for a name that would leave `log_dir` or is no file name.
    """
    check_run_name(experiment_name)
    if resume:
        return experiment_name
    for attempt in itertools.count(1):
        name = experiment_name if attempt == 1 else f"{experiment_name}-{attempt}"
        if _take(tensorboard_dir(log_dir, name), jsonl_path(log_dir, name)):
            return name
    raise AssertionError("unreachable: the count does not end")


def _take(directory: Path, lines: Path) -> bool:
    """Claim a run's directory; return False where another run has it."""
    if job.join(directory):
        return True
    if lines.exists():
        return False
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        return not directory.is_dir()
    except OSError:
        return True
    job.mark(directory)
    return True


def last_logged_step(log_dir: str | Path, run_name: str) -> int | None:
    """Return the largest step that a run's files hold, None where there is none."""
    path = jsonl_path(log_dir, run_name)
    if path.exists():
        return max((int(record["step"]) for record in read_jsonl(path)), default=None)
    directory = tensorboard_dir(log_dir, run_name)
    if not any(directory.glob("events.*")):
        return None
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    events = (
        Event.FromString(raw)
        for file in sorted(directory.glob("events.*"))
        for raw in RawEventFileLoader(str(file)).Load()
    )
    return max((event.step for event in events if event.HasField("summary")), default=None)
