"""What the ranks must agree on before anything is reduced, and the errors when they do not."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hjepa_dist_metrics.distributed.channel import Channel
from hjepa_dist_metrics.errors import DesyncError
from hjepa_dist_metrics.version import __version__

if TYPE_CHECKING:
    from hjepa_dist_metrics.sync.plan import RowGroup

_MOST_DIFFERENCES, _MOST_RANKS, _MOST_CHARACTERS = 10, 8, 400


@dataclass(frozen=True)
class Schema:
    """List the states of a sync, sorted by name, with the signature of each."""

    lines: tuple[tuple[str, str], ...]
    digest: tuple[int, int]

    @classmethod
    def of(cls, signatures: Mapping[str, str]) -> Schema:
        """Describe states, names to signatures."""
        lines = tuple(sorted(signatures.items()))
        text = json.dumps([__version__, lines]).encode()
        words = np.frombuffer(hashlib.sha256(text).digest()[:16], dtype=np.int64)
        return cls(lines, (int(words[0]), int(words[1])))


@functools.lru_cache(maxsize=64)
def name_word(name: str) -> int:
    """Return the fingerprint of a collection's name, 0 for none."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little", signed=True) if name else 0


@dataclass
class Report:
    """Say what one rank was about to sync; exchanged only when the ranks disagree."""

    number: int
    failures: dict[str, str]
    version: str = field(default_factory=lambda: __version__)
    announcement: str = ""
    collection: str = ""
    lines: list[tuple[str, str]] = field(default_factory=list)

    def encode(self) -> Tensor:
        """Return the report as bytes."""
        return torch.from_numpy(np.frombuffer(json.dumps(vars(self)).encode(), dtype=np.uint8).copy())

    @classmethod
    def decode(cls, data: Tensor) -> Report:
        """Read a report back."""
        return cls(**json.loads(data.numpy().tobytes().decode()))


def exchange_reports(channel: Channel, mine: Report) -> list[Report]:
    """Return every rank's report, in rank order."""
    data = mine.encode()
    sizes = channel.all_gather(torch.tensor([data.numel()], dtype=torch.int64, device="cpu"))[:, 0].tolist()
    padded = torch.zeros(max(sizes), dtype=torch.uint8, device="cpu")
    padded[: data.numel()] = data
    gathered = channel.all_gather(padded)
    return [Report.decode(row[:size]) for row, size in zip(gathered, sizes, strict=True)]


def disagreement(reports: Sequence[Report]) -> DesyncError:
    """Return the error that names the ranks and metrics at fault; the same on every rank."""
    found = [*_failures(reports), *_versions(reports), *_numbers(reports), *_collections(reports)]
    found += _schemas(reports)
    found = found or ["their builds of the package differ"]
    shown = [_cut(text) for text in found[:_MOST_DIFFERENCES]]
    if len(found) > len(shown):
        shown.append(f"and {len(found) - len(shown)} more")
    return DesyncError("the ranks cannot sync their metrics: " + "; ".join(shown))


def raise_conflicts(gathered: Iterable[tuple[RowGroup, Tensor]]) -> None:
    """Raise where ranks hold different values of something replicated.

    `gathered` are groups of states with every rank's rows, [W, fields, columns].
    """
    found = []
    for group, rows in gathered:
        conflicts = group.kind.conflicts(rows)
        if conflicts is None or not bool(conflicts.any()):
            continue
        widths = group.widths
        parts = zip(
            group.names, conflicts.split_with_sizes(widths, 1), rows.split_with_sizes(widths, 2), strict=True
        )
        for name, conflict, values in parts:
            if bool(conflict.any()):
                column = int(conflict.any(dim=0).nonzero()[0])
                found.append(
                    f"{name!r} must be the same on every rank, got {_by_value(values[:, 0, column])}"
                )
    if found:
        raise DesyncError("the ranks disagree on replicated values: " + "; ".join(found[:_MOST_DIFFERENCES]))


def _by_value(values: Tensor) -> str:
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values.tolist()):
        ranks.setdefault("nothing" if value != value else f"{value:.9g}", []).append(rank)
    return ", ".join(f"{value} on {_name(members)}" for value, members in ranks.items())


def _failures(reports: Sequence[Report]) -> list[str]:
    return [
        f"metric {name!r} failed to update on rank {rank} ({text})"
        for rank, report in enumerate(reports)
        for name, text in sorted(report.failures.items())
    ]


def _versions(reports: Sequence[Report]) -> list[str]:
    return _differences("package versions", [report.version for report in reports])


def _numbers(reports: Sequence[Report]) -> list[str]:
    return _differences("sync numbers", [str(report.number) for report in reports])


def _collections(reports: Sequence[Report]) -> list[str]:
    return _differences("collections", [repr(report.collection) for report in reports])


def _schemas(reports: Sequence[Report]) -> list[str]:
    """Return a line for each metric that a rank lacks, and for each state that differs."""
    tables = [dict(report.lines) for report in reports]
    held = [{_metric(name) for name in table} for table in tables]
    absent = {name: _absence(name, held) for name in sorted(set().union(*held))}
    states = sorted({name for table in tables for name in table if not absent[_metric(name)]})
    return [text for text in absent.values() if text] + [
        text
        for name in states
        for text in _differences(f"state {name!r}", [table.get(name, "missing") for table in tables])
    ]


def _metric(state: str) -> str:
    return state.rpartition(".")[0]


def _absence(metric: str, held: Sequence[set[str]]) -> str:
    lack = [rank for rank, metrics in enumerate(held) if metric not in metrics]
    have = [rank for rank, metrics in enumerate(held) if metric in metrics]
    return f"metric {metric!r} is missing on {_name(lack)}, held by {_name(have)}" if lack else ""


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 3] + "..."


def _differences(what: str, by_rank: Sequence[str]) -> list[str]:
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(by_rank):
        ranks.setdefault(value, []).append(rank)
    if len(ranks) == 1:
        return []
    parts = (f"{value} on {_name(members)}" for value, members in ranks.items())
    return [f"{what} differ: " + ", ".join(parts)]


def _name(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    more = f" and {len(ranks) - _MOST_RANKS} more" if len(ranks) > _MOST_RANKS else ""
    return f"ranks {', '.join(map(str, ranks[:_MOST_RANKS]))}{more}"
