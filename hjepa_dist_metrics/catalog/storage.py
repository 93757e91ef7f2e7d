"""`entries.json`: the entries of all metrics in one file that is read in milliseconds, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from hjepa_dist_metrics.catalog import limits
from hjepa_dist_metrics.catalog.entry import Entry, Limits
from hjepa_dist_metrics.errors import ConfigError

ENTRIES_FILE = Path(__file__).with_name("entries.json")
_DEFAULTS = {field.name: field.default for field in fields(Entry)}


def to_json(entries: Iterable[Entry]) -> str:
    """Return entries as JSON, an entry a line, without the fields that have their default.

    `limits` become the name of their function. ConfigError where that is not one of `catalog.limits`.
    """
    rows = [json.dumps(_row(entry), ensure_ascii=False) for entry in entries]
    return "[\n" + ",\n".join(rows) + "\n]\n"


def from_json(text: str) -> tuple[Entry, ...]:
    """Return the entries that `to_json` has written."""
    return tuple(_entry(row) for row in json.loads(text))


def _row(entry: Entry) -> dict[str, Any]:
    values = {name: getattr(entry, name) for name in _DEFAULTS}
    row = {name: value for name, value in values.items() if value != _DEFAULTS[name]}
    if entry.limits is not None:
        row["limits"] = _name_of_limits(entry)
    if entry.bounds is not None:
        row["bounds"] = asdict(entry.bounds)
    return row


def _name_of_limits(entry: Entry) -> str:
    name: str = getattr(entry.limits, "__name__", "")
    if getattr(limits, name, None) is not entry.limits:
        raise ConfigError(f"the limits of {entry.pattern!r} must be a function of {limits.__name__}")
    return name


def _entry(row: Mapping[str, Any]) -> Entry:
    values = dict(row)
    if "limits" in values:
        values["limits"] = getattr(limits, values["limits"])
    if "bounds" in values:
        values["bounds"] = Limits(**values["bounds"])
    return Entry(**values)
