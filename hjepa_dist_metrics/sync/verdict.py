"""What the ranks of a failed sync tell each other in place of numbers, and the error that all of them raise.

A report has an entry for each different thing that ranks were about to sync, with those ranks as ranges. It
is bounded, however many ranks there are: beyond a few entries all others become one.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from hjepa_dist_metrics.errors import DesyncError, MetricsError, RankFailureError, SyncTimeoutError
from hjepa_dist_metrics.sync.manifest import Lines, metric_of
from hjepa_dist_metrics.version import __version__

_MOST_DIFFERENCES, _MOST_RANKS, _MOST_CHARACTERS, _MOST_ENTRIES = 10, 8, 400, 16
_MOST_RANGES = 256
_MANY = -1  # the sync number of the entry that stands for many

Ranges = list[list[int]]  # [first, beyond) in order
_ERRORS: dict[str, type[RankFailureError] | type[SyncTimeoutError]] = {
    "RankFailureError": RankFailureError,
    "SyncTimeoutError": SyncTimeoutError,
}


class Entry(NamedTuple):
    """Say what some ranks were about to sync, and what their formulas made of the last sync."""

    ranks: Ranges
    number: int
    version: str
    collection: str
    lines: Lines
    failures: Lines = ()
    outcome: tuple[str, ...] = ()

    @property
    def first(self) -> int:
        """Return the lowest rank."""
        return self.ranks[0][0]


class Report(NamedTuple):
    """Hold the entries of a block of ranks, and the error of a connection, where one broke."""

    entries: tuple[Entry, ...] = ()
    error: tuple[str, str, tuple[int, ...]] | None = None

    @classmethod
    def of_error(cls, error: RankFailureError | SyncTimeoutError) -> Report:
        """Return the report of a connection that broke."""
        return cls((), (type(error).__name__, str(error), tuple(error.ranks)))

    @classmethod
    def own(
        cls,
        number: int,
        collection: str,
        outcome: tuple[str, ...],
        ranks: range,
        lines: Lines,
        failures: Mapping[str, str],
    ) -> Report:
        """Return what ranks that agree were about to sync."""
        cut = tuple((name, _cut(text)) for name, text in sorted(failures.items())[:_MOST_DIFFERENCES])
        span = [[ranks.start, ranks.stop]]
        return cls((Entry(span, number, __version__, collection, lines, cut, outcome),))

    def merge(self, other: Report) -> Report:
        """Return the entries of both blocks; `other` is of higher ranks."""
        merged: dict[tuple[object, ...], Entry] = {}
        for entry in (*self.entries, *other.entries):
            if entry[1:] not in merged and len(merged) >= _MOST_ENTRIES:
                entry = Entry(entry.ranks, _MANY, entry.version, "", ())
            ranks = merged[entry[1:]].ranks if entry[1:] in merged else []
            merged[entry[1:]] = entry._replace(ranks=_joined([*ranks, *entry.ranks])[:_MOST_RANGES])
        return Report(tuple(merged.values()), self.error or other.error)

    def encode(self) -> bytes:
        """Return the report as bytes."""
        return zlib.compress(json.dumps(self).encode(), 1)

    @classmethod
    def decode(cls, data: bytes) -> Report:
        """Read what `encode` wrote."""
        entries, error = json.loads(zlib.decompress(data))
        found = [Entry._make((*row[:4], _pairs(row[4]), _pairs(row[5]), tuple(row[6]))) for row in entries]
        return cls(tuple(found), None if error is None else (error[0], error[1], tuple(error[2])))

    def exception(self) -> MetricsError:
        """Return the error that names the ranks and metrics at fault; the same on every rank."""
        if self.error is not None:
            kind, text, ranks = self.error
            return _ERRORS[kind](text, ranks)
        return disagreement(self.entries)


def disagreement(entries: Sequence[Entry]) -> DesyncError:
    """Return the error of ranks that are about to sync different things."""
    found = [
        *_failures(entries),
        *_differences("package versions", entries, lambda entry: entry.version),
        *_differences("sync numbers", entries, _number),
        *_differences("collections", entries, lambda entry: repr(entry.collection)),
        *_schemas(entries),
        *_outcomes(entries),
    ]
    found = found or ["their builds of the package differ"]
    shown = [_cut(text) for text in found[:_MOST_DIFFERENCES]]
    if len(found) > len(shown):
        shown.append(f"and {len(found) - len(shown)} more")
    return DesyncError("the ranks cannot sync their metrics: " + "; ".join(shown))


def _number(entry: Entry) -> str:
    return "others" if entry.number == _MANY else str(entry.number)


def _failures(entries: Sequence[Entry]) -> list[str]:
    return [f"{name} on {_name(entry.ranks)} ({text})" for entry in entries for name, text in entry.failures]


def _outcomes(entries: Sequence[Entry]) -> list[str]:
    """Return a line for each tag that only some ranks made of the last sync."""
    tags = sorted({tag for entry in entries for tag in entry.outcome})
    found = []
    for tag in tags:
        have = _joined([r for entry in entries if tag in entry.outcome for r in entry.ranks])
        lack = _joined([r for entry in entries if tag not in entry.outcome for r in entry.ranks])
        if lack:
            found.append(f"in the last sync {_name(have)} got {tag!r} and {_name(lack)} did not")
    return found


def _schemas(entries: Sequence[Entry]) -> list[str]:
    """Return a line for each metric that a rank lacks, and for each state that differs."""
    named = [entry for entry in entries if entry.lines]
    held = [{metric_of(name) for name, _ in entry.lines} for entry in entries]
    absent = {name: _absence(name, entries, held) for name in sorted(set().union(*held))}
    tables = {entry.first: dict(entry.lines) for entry in named}
    states = sorted({name for table in tables.values() for name in table if not absent[metric_of(name)]})
    lines = [text for text in absent.values() if text]
    for name in states:
        lines += _differences(f"state {name!r}", named, partial(_signature, tables, name))
    return lines


def _signature(tables: Mapping[int, Mapping[str, str]], name: str, entry: Entry) -> str:
    return tables[entry.first].get(name, "missing")


def _absence(metric: str, entries: Sequence[Entry], held: Sequence[set[str]]) -> str:
    pairs = list(zip(entries, held, strict=True))
    lack = _joined([r for entry, metrics in pairs if metric not in metrics for r in entry.ranks])
    have = _joined([r for entry, metrics in pairs if metric in metrics for r in entry.ranks])
    return f"metric {metric!r} is missing on {_name(lack)}, held by {_name(have)}" if lack else ""


def _differences(what: str, entries: Iterable[Entry], value_of: Callable[[Entry], str]) -> list[str]:
    by_value: dict[str, Ranges] = {}
    for entry in entries:
        by_value.setdefault(value_of(entry), []).extend(entry.ranks)
    if len(by_value) < 2:
        return []
    ordered = sorted((_joined(ranks), value) for value, ranks in by_value.items())
    return [f"{what} differ: " + ", ".join(f"{value} on {_name(ranks)}" for ranks, value in ordered)]


def _joined(ranges: Iterable[Sequence[int]]) -> Ranges:
    joined: Ranges = []
    for first, beyond in sorted(map(tuple, ranges)):
        if joined and first <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], beyond)
        else:
            joined.append([first, beyond])
    return joined


def _name(ranges: Ranges) -> str:
    count = sum(beyond - first for first, beyond in ranges)
    shown = [rank for first, beyond in ranges[:_MOST_RANKS] for rank in range(first, beyond)[:_MOST_RANKS]]
    more = f" and {count - _MOST_RANKS} more" if count > _MOST_RANKS else ""
    return ("rank " if count == 1 else "ranks ") + ", ".join(map(str, shown[:_MOST_RANKS])) + more


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 3] + "..."


def _pairs(items: Iterable[Sequence[str]]) -> Lines:
    return tuple((name, value) for name, value in items)
