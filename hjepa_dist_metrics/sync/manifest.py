"""What a block of ranks syncs: its states by name, and how they lie in a payload."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hjepa_dist_metrics.states import RowState, State
from hjepa_dist_metrics.version import __version__

Lines = tuple[tuple[str, str], ...]


class Group(NamedTuple):
    """Name the row states of one class; they lie side by side in one block [fields, columns] of a payload."""

    kind: type[RowState]
    names: tuple[str, ...]
    starts: tuple[int, ...]
    shape: tuple[int, int]
    place: slice  # of the block's numbers in the payload

    @property
    def columns(self) -> int:
        """Return how many columns the block has."""
        return self.shape[1]

    def block(self, numbers: Any) -> Any:
        """Return the block within a payload's numbers."""
        return numbers[self.place].reshape(self.shape)


class ConflictError(Exception):
    """Two blocks hold different states under one name, or states that this rank cannot make."""


class Membership(NamedTuple):
    """Say which metrics a block of ranks wants synced, and which of its ranks know them.

    `asked` are those that some rank wants; others are offered, in case that a rank of another block wants
    them. `everywhere` are known to all ranks of the block.
    """

    asked: frozenset[str]
    everywhere: frozenset[str]

    def merge(self, other: Membership) -> Membership:
        """Return the membership of both blocks together."""
        return Membership(self.asked | other.asked, self.everywhere & other.everywhere)

    @property
    def complete(self) -> bool:
        """Return whether every rank knows all metrics that are asked for."""
        return self.asked <= self.everywhere


class Manifest:
    """List the states of a sync, sorted by name, and lay out their payload.

    `states` make others of their kind, and need not be empty. Row states lie in `groups` of one class, in
    front; then come the `others`, each in bytes of its own. Manifests with the same `digest` are the same.
    """

    def __init__(self, states: Mapping[str, State], membership: Membership | None = None) -> None:
        self.names, self.membership = tuple(states), membership
        self.signatures = tuple(state.signature for state in states.values())
        self.lines: Lines = tuple(sorted(zip(self.names, self.signatures, strict=True)))
        self.states = {name: states[name] for name, _ in self.lines}
        self.digest = _digest(self.lines, membership)
        rows = {name: state for name, state in self.states.items() if isinstance(state, RowState)}
        self.others = tuple(name for name in self.states if name not in rows)
        self.groups = _groups(rows)
        self.numbers = self.groups[-1].place.stop if self.groups else 0
        self.places = {
            name: (group, start)
            for group in self.groups
            for name, start in zip(group.names, group.starts, strict=True)
        }
        self.members: dict[str, dict[str, str]] = {}
        for name in self.names:
            metric, _, state = name.rpartition(".")
            self.members.setdefault(metric, {})[state] = name
        self._joined: dict[tuple[int, int], tuple[Manifest, Manifest]] = {}
        self._columns: dict[tuple[tuple[str, ...], str], tuple[Group, Any] | None] = {}

    def describes(self, states: Mapping[str, State], membership: Membership | None) -> bool:
        """Return whether these states are those of the manifest."""
        return (
            self.names == tuple(states)
            and self.signatures == tuple(state.signature for state in states.values())
            and self.membership == membership
        )

    def columns(self, metrics: tuple[str, ...], state: str) -> tuple[Group, Any] | None:
        """Return the group in which a single number of all metrics lies, and the columns of its block."""
        key = metrics, state
        if key not in self._columns:
            names = [self.members.get(metric, {}).get(state, "") for metric in metrics]
            places = [self.places[name] for name in names if self._is_single(name)]
            self._columns[key] = None
            if len(places) == len(names) and len({group.kind for group, _ in places}) == 1:
                group, starts = places[0][0], [start for _, start in places]
                whole = starts == list(range(group.columns))
                self._columns[key] = group, slice(None) if whole else np.array(starts)
        return self._columns[key]

    def _is_single(self, name: str) -> bool:
        state = self.states.get(name)
        return isinstance(state, RowState) and not state.shape

    def encode(self) -> bytes:
        """Return all that another rank needs to make these states."""
        rows = [
            [name, state.signature, state.kind(), _parameters(state)] for name, state in self.states.items()
        ]
        member = None if self.membership is None else [sorted(part) for part in self.membership]
        return zlib.compress(json.dumps([rows, member]).encode(), 1)

    def joined(self, digest: tuple[int, int], encoded: bytes) -> tuple[Manifest, Manifest]:
        """Return the manifest of another block, which has been encoded, and that of both blocks together.

        Raises `ConflictError` where a name stands for two kinds of states, or this rank cannot make a state.
        """
        if digest not in self._joined:
            rows, member = json.loads(zlib.decompress(encoded))
            theirs = {row[0]: self._state(*row) for row in rows}
            membership = Membership(*map(frozenset, member))
            own = self.membership or Membership(frozenset(), membership.everywhere)
            union = Manifest({**self.states, **theirs}, own.merge(membership))
            self._joined[digest] = Manifest(theirs, membership), union
        return self._joined[digest]

    def _state(self, name: str, signature: str, kind: str, parameters: Mapping[str, Any] | str) -> State:
        """Return this block's state of that name, or make one."""
        if name not in self.states:
            return _make(name, kind, parameters, signature)
        if self.states[name].signature != signature:
            raise ConflictError(f"state {name!r} is {self.states[name].signature} here and {signature} there")
        return self.states[name]


def metric_of(name: str) -> str:
    """Return the metric's part of a state's full name."""
    return name.rpartition(".")[0]


def _groups(rows: Mapping[str, RowState]) -> tuple[Group, ...]:
    by_kind: dict[type[RowState], list[str]] = {}
    for name, state in rows.items():
        by_kind.setdefault(type(state), []).append(name)
    groups, first = [], 0
    for kind, names in sorted(by_kind.items(), key=lambda item: item[0].kind()):
        ends = np.cumsum([rows[name].size for name in names]).tolist()
        place = slice(first, first + kind.fields * ends[-1])
        groups.append(Group(kind, tuple(names), (0, *ends[:-1]), (kind.fields, ends[-1]), place))
        first = place.stop
    return tuple(groups)


def _digest(lines: Iterable[Sequence[str]], membership: Membership | None) -> tuple[int, int]:
    member = None if membership is None else [sorted(part) for part in membership]
    text = json.dumps([__version__, list(lines), member]).encode()
    words = np.frombuffer(hashlib.sha256(text).digest()[:16], dtype=np.int64)
    return int(words[0]), int(words[1])


def _make(name: str, kind: str, parameters: Mapping[str, Any] | str, signature: str) -> State:
    """Return an empty state of a metric that this rank lacks."""
    if isinstance(parameters, str):
        raise ConflictError(f"no other rank can make the state {name!r}, {signature}: {parameters}")
    try:
        state = State.kinds[kind](**parameters)
    except Exception as error:
        raise ConflictError(f"this rank cannot make the state {name!r}, {signature}: {error!r}") from None
    if state.signature != signature:
        raise ConflictError(f"the state {name!r}, {signature}, made of its parameters is {state.signature}")
    return state


def _parameters(state: State) -> Any:
    """Return a state's parameters as JSON has them, or in which way they are none."""
    try:
        return json.loads(json.dumps(state.parameters, default=_plain))
    except Exception as error:  # a class of the user's own: whoever lacks it is told
        return f"its `parameters` are not to be had, {type(error).__name__}: {error}"


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"the parameters of a state must be plain data, got {type(value).__name__}")
