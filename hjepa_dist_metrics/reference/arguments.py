"""Configuration of a run: YAML plus overrides on the command line, with errors of one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from hjepa_dist_metrics import ConfigError, LoggingConfig, MissingExtraError
from hjepa_dist_metrics.reference.hjepa.config import DataConfig, ModelConfig, TrainingConfig
from hjepa_dist_metrics.sinks import HParam

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


@dataclass(frozen=True)
class RunConfig:
    """Hold the four sections of a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def settings(self) -> dict[str, HParam]:
        """Return the settings of model, data and training by dotted name."""
        sections = {name: asdict(getattr(self, name)) for name in ("model", "data", "training")}
        return dict(_flatten(sections))


_SECTIONS = {"model": ModelConfig, "data": DataConfig, "training": TrainingConfig, "logging": LoggingConfig}
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

    parser = _parser(program)
    try:
        parsed = parser.parse_args(list(arguments))
        # `instantiate` since jsonargparse 4.49, which warns about the older name
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
        sections = instantiate(parsed)
    except ConfigError:
        raise
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(_one_line(str(error), parser)) from error
    return RunConfig(**{name: sections[name] for name in _SECTIONS})


def _flatten(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, HParam]]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, (bool, int, float, str)) else str(value)


def _parser(program: str) -> ArgumentParser:
    try:
        from jsonargparse import ArgumentParser
    except ImportError as error:
        raise MissingExtraError("jsonargparse", "train", "The training command") from error
    parser = ArgumentParser(
        prog=program,
        description="Train the reference H-JEPA, alone or as one process of a launched job.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with the sections below")
    for name, kind in _SECTIONS.items():
        parser.add_class_arguments(kind, name)
    return parser


def _one_line(message: str, parser: ArgumentParser) -> str:
    line = re.sub(r"\s+", " ", message).strip().replace("<class '", "").replace("'>", "")
    match = next((found for pattern in _UNKNOWN if (found := pattern.search(line))), None)
    if match is None:
        return line
    groups = match.groupdict()
    key = f"{groups['group']}.{groups['key']}" if groups.get("group") else groups["key"]
    valid = [action.dest for action in parser._actions if "." in action.dest]
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.0)
    return f"unknown key {key!r}: the nearest valid one is {near[0]!r}"
