"""Turn nested mappings into dataclasses, with errors that say which key is wrong and how."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

from hjepa_dist_metrics.errors import ConfigError

T = TypeVar("T")


def build(kind: type[T], section: Mapping[str, Any], path: str) -> T:
    """Return `kind`, a dataclass, filled from `section`; what is absent keeps its default.

    `path` is the dotted key of the section. Raises ConfigError for an unknown key or a wrong type.
    """
    hints = typing.get_type_hints(kind)
    for key in section:
        if key not in hints:
            raise ConfigError(_unknown(path, key, list(hints)))
    return kind(**{key: _convert(value, hints[key], f"{path}.{key}") for key, value in section.items()})


def to_mapping(source: object) -> Mapping[str, Any] | None:
    """Return a mapping, a dataclass's fields or a namespace's attributes; None for anything else."""
    if isinstance(source, Mapping):
        return source
    if dataclasses.is_dataclass(source) and not isinstance(source, type):
        return {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}
    if type(source).__name__ in ("Namespace", "SimpleNamespace"):  # argparse, jsonargparse, types
        return vars(source)
    return None


def _unknown(path: str, key: object, valid: list[str]) -> str:
    near = difflib.get_close_matches(str(key), valid, n=1, cutoff=0.5)
    hint = f"did you mean {path}.{near[0]}? " if near else ""
    shown = key if isinstance(key, str) and key.isprintable() else repr(key)
    return f"unknown key {path}.{shown}: {hint}valid keys: {', '.join(valid)}"


def _convert(value: Any, hint: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _convert_section(value, hint, path)
    if not _fits(value, hint):
        raise ConfigError(f"{path} is {value!r} ({type(value).__name__}); expected {_describe(hint)}")
    if hint is float:
        return float(value)
    return list(value) if isinstance(value, (list, tuple)) else value


def _convert_section(value: Any, kind: type[Any], path: str) -> Any:
    if isinstance(value, kind):
        return value
    section = to_mapping(value)
    if section is None:
        keys = ", ".join(field.name for field in dataclasses.fields(kind))
        raise ConfigError(
            f"{path} is {value!r} ({type(value).__name__}); expected a section with keys {keys}"
        )
    return build(kind, section, path)


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if origin is Literal:
        return value in typing.get_args(hint)
    if origin is list:
        (item,) = typing.get_args(hint)
        return isinstance(value, (list, tuple)) and all(_fits(entry, item) for entry in value)
    if origin is dict:
        key_hint, item_hint = typing.get_args(hint)
        return isinstance(value, Mapping) and all(
            _fits(key, key_hint) and _fits(item, item_hint) for key, item in value.items()
        )
    if hint in (int, float) and isinstance(value, bool):  # True is an int to Python, not to a reader
        return False
    return isinstance(value, (int, float) if hint is float else hint)


def _describe(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in typing.get_args(hint))
    if origin is Literal:
        return " or ".join(repr(option) for option in typing.get_args(hint))
    if origin is list:
        return f"a list of {_describe(typing.get_args(hint)[0])}"
    if origin is dict:
        return "a mapping of {} to {}".format(*map(_describe, typing.get_args(hint)))
    return "null" if hint is type(None) else {"bool": "true or false"}.get(hint.__name__, hint.__name__)
