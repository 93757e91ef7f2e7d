"""Configuration of a run: YAML plus overrides on the command line, with errors of one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hjepa_dist_metrics import ConfigError, LoggingConfig, MissingExtraError
from hjepa_dist_metrics.reference.training import TrainingConfig
from hjepa_dist_metrics.reference.workloads import DEFAULT, workload_kind
from hjepa_dist_metrics.sinks import HParam

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


@dataclass(frozen=True)
class RunConfig:
    """Hold the sections of a run; what `model` and `data` are depends on the workload."""

    workload: str
    model: Any
    data: Any
    training: TrainingConfig
    logging: LoggingConfig

    def settings(self) -> dict[str, HParam]:
        """Return the settings of model, data and training by dotted name."""
        sections = {name: asdict(getattr(self, name)) for name in ("model", "data", "training")}
        return {"workload": self.workload, **dict(_flatten(sections))}


# Arguments besides those of the sections.
_OWN = ("workload", "output_dir", "resume")
_UNKNOWN = (
    re.compile(r"Group '(?P<group>[\w.]+)' does not accept option '(?P<key>[\w.]+)'"),
    re.compile(r"Option '(?P<key>[\w.]+)' is not accepted"),
    re.compile(r"unrecognized arguments: --(?P<key>[\w.]+)"),
)


def parse(arguments: Sequence[str], program: str = "train.py") -> RunConfig:
    """Return the run's configuration from `--config FILE` and `--section.key value`.

    Later arguments win. Raises ConfigError, with one line that names the key, for a missing file, an unknown
    key (with the nearest valid one) or a value of the wrong type.
    """
    import argparse

    workload = _workload(arguments)
    sections = {**workload_kind(workload).sections, "logging": LoggingConfig}
    parser = _parser(program, sections)
    try:
        parsed = parser.parse_args(list(arguments))
        # `instantiate` since jsonargparse 4.49, which warns about the older name
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
        made = instantiate(parsed)
    except ConfigError:
        raise
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(_one_line(str(error), parser)) from error
    config = RunConfig(workload=workload, **{name: made[name] for name in sections})
    return _placed(config, parsed["output_dir"], parsed["resume"])


def _placed(config: RunConfig, output_dir: str | None, resume: bool) -> RunConfig:
    """Apply `--output_dir` and `--resume`, which stand for settings of two sections."""
    logging = config.logging if output_dir is None else replace(config.logging, log_dir=output_dir)
    training = config.training
    if training.checkpoint_dir is None and (resume or output_dir is not None):
        training = replace(training, checkpoint_dir=f"{logging.log_dir}/checkpoints/{{run_name}}")
    return replace(config, training=replace(training, resume=resume or training.resume), logging=logging)


def _workload(arguments: Sequence[str]) -> str:
    """Return the workload that the arguments name, before the sections that depend on it are parsed."""
    import argparse

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--workload")
    first.add_argument("--config", action="append", default=[])
    known, _ = first.parse_known_args(list(arguments))
    named = [known.workload, *(_workload_of_file(Path(path)) for path in reversed(known.config))]
    return next((name for name in named if name is not None), DEFAULT)


def _workload_of_file(path: Path) -> str | None:
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None  # the parser says what is wrong with the file
    return str(content["workload"]) if isinstance(content, Mapping) and "workload" in content else None


def _flatten(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, HParam]]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, (bool, int, float, str)) else str(value)


def _parser(program: str, sections: Mapping[str, type[Any]]) -> ArgumentParser:
    try:
        from jsonargparse import ArgumentParser
    except ImportError as error:
        raise MissingExtraError("jsonargparse", "train", "The training command") from error
    parser = ArgumentParser(
        prog=program,
        description="Train a reference workload, alone or as one process of a launched job.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with the sections below")
    parser.add_argument("--workload", type=str, default=DEFAULT, help="what to train")
    parser.add_argument(
        "--output_dir",
        type=str,
        default=None,
        help="directory of everything that the run writes: sets logging.log_dir, and training.checkpoint_dir "
        "to checkpoints/{run_name} in it unless that is set",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run from its newest checkpoint, in the same files; start it where there is none",
    )
    for name, kind in sections.items():
        parser.add_class_arguments(kind, name)
    return parser


def _one_line(message: str, parser: ArgumentParser) -> str:
    line = re.sub(r"\s+", " ", message).strip().replace("<class '", "").replace("'>", "")
    match = next((found for pattern in _UNKNOWN if (found := pattern.search(line))), None)
    if match is None:
        return line
    groups = match.groupdict()
    key = f"{groups['group']}.{groups['key']}" if groups.get("group") else groups["key"]
    valid = [action.dest for action in parser._actions if "." in action.dest or action.dest in _OWN]
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.0)
    return f"unknown key {key!r}: the nearest valid one is {near[0]!r}"
