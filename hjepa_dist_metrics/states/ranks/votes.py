"""Which ranks hold the same: how many hold each of a few keys, and the first rank that does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from hjepa_dist_metrics.states.base import State, follow, require_same_signature, to_device

_UNSIGNED = -1


class _Row(NamedTuple):
    """Say how many ranks hold a key at a step, and which is the first.

    `single` is 0 for the row that stands for ranks of several keys that are not kept.
    """

    step: int
    kind: int
    key: int
    single: int
    ranks: int
    first: int


class Verdict(NamedTuple):
    """Say how many of `ranks` ranks hold another key than most do, and which is the first of them."""

    ranks: int
    different: int
    first: int | None


class Votes(State):
    """Keep each rank's latest key; after a sync `.verdict`: how many ranks hold another key than most do.

    Keys are compared among the ranks that gave them at the latest step of any. Of keys that equally many
    ranks hold, the one with the lowest rank is that of most. Keys of different kinds cannot be compared, and
    there is no verdict. It costs 48 bytes for each different key, of which the `most` that most ranks hold
    are kept; the ranks of all others count as different.
    """

    fixed = False

    def __init__(self, most: int = 8) -> None:
        self.most = most
        self._load(self._blank())

    @staticmethod
    def _blank() -> dict[str, Tensor]:
        return {"rows": torch.zeros((0, len(_Row._fields)), dtype=torch.int64, device="cpu")}

    def _load(self, tensors: dict[str, Tensor]) -> None:
        self._rows = tensors["rows"]

    @property
    def signature(self) -> str:
        """Describe kind and size."""
        return f"Votes[{self.most}]"

    @property
    def verdict(self) -> Verdict | None:
        """Return what the ranks' keys say; None of fewer than two ranks, and of keys of different kinds."""
        rows = sorted(self._listed(), key=_fewest_first)
        ranks = sum(row.ranks for row in rows)
        if ranks < 2 or len({row.kind for row in rows}) > 1:
            return None
        *others, most = rows
        return Verdict(ranks, ranks - most.ranks, min((row.first for row in others), default=None))

    def empty(self) -> Votes:
        """Return a state without keys."""
        return self.adopt(self._blank())

    def pack(self) -> dict[str, Tensor]:
        """Return a row for each key."""
        return {"rows": self._rows}

    def unpack(self, tensors: Mapping[str, Tensor]) -> Votes:
        """Return a state with a rank's key that no sync has compared, and without any other."""
        rows = tensors["rows"]
        unsigned = len(rows) == 1 and int(rows[0, -1]) == _UNSIGNED
        return self.adopt({"rows": rows.clone()}) if unsigned else self.empty()

    def update(self, key: Tensor, kind: int, step: int) -> None:
        """Replace this rank's key, int64 0-d; keys of one `kind`, an int64, can be compared."""
        before = torch.tensor([step, kind], dtype=torch.int64, device="cpu")
        after = torch.tensor([1, 1, _UNSIGNED], dtype=torch.int64, device="cpu")
        parts = [to_device(before, key.device), key.reshape(1), to_device(after, key.device)]
        self._load({"rows": torch.cat(parts)[None]})

    def signed(self, rank: int, steps: int) -> Votes:
        """Return the key as that of `rank`; nothing for those of an earlier sync."""
        if len(self._rows) != 1:
            return self.empty()
        number = torch.full((1, 1), rank, dtype=torch.int64, device=self._rows.device)
        return self.adopt({"rows": torch.cat([self._rows[:, :-1], number], dim=1)})

    def merge(self, other: Votes) -> Votes:
        """Add up the ranks of equal keys; of one rank take the later key."""
        require_same_signature(self, other)
        mine, theirs = self._listed(), other._listed()
        if not mine or not theirs:
            return self.adopt((self if mine else other).pack())
        if _UNSIGNED in (mine[0].first, theirs[0].first):
            return self.adopt(other.pack())
        rows = _bounded(_counted([*mine, *theirs]), self.most)
        return self.adopt({"rows": follow(torch.tensor(rows, dtype=torch.int64, device="cpu"), self._rows)})

    def _listed(self) -> list[_Row]:
        return [_Row(*row) for row in self._rows.tolist()]


def _fewest_first(row: _Row) -> tuple[int, int, int]:
    return row.single, row.ranks, -row.first


def _counted(rows: Iterable[_Row]) -> list[_Row]:
    """Return one row for each key of the latest step, in the order of the keys."""
    rows = list(rows)
    latest = max(row.step for row in rows)
    counted: dict[tuple[int, ...], _Row] = {}
    for row in (row for row in rows if row.step == latest):
        held = counted.get(row[:4])
        counted[row[:4]] = row if held is None else _together(held, row)
    return [counted[key] for key in sorted(counted)]


def _together(one: _Row, other: _Row) -> _Row:
    return one._replace(ranks=one.ranks + other.ranks, first=min(one.first, other.first))


def _bounded(rows: list[_Row], most: int) -> list[_Row]:
    """Return the keys that most ranks hold, and one row for the ranks of all others; of kinds, any two."""
    by_kind = {row.kind: row for row in rows}
    if len(by_kind) > 1:
        return list(by_kind.values())[:2]
    if len(rows) <= most:
        return rows
    ordered = sorted(rows, key=_fewest_first)
    rest, kept = ordered[: len(rows) - most + 1], ordered[len(rows) - most + 1 :]
    dropped = rest[0]._replace(key=0, single=0)
    for row in rest[1:]:
        dropped = _together(dropped, row)
    return [*kept, dropped]
