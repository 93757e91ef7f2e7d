"""Syncs of one owner, numbered: take a snapshot, merge it over ranks in order, hand over what came of it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from hjepa_dist_metrics.errors import DesyncError, RankFailureError, SyncTimeoutError
from hjepa_dist_metrics.parallel import ProcessContext, open_channel
from hjepa_dist_metrics.parallel.transport import Channel
from hjepa_dist_metrics.states import State
from hjepa_dist_metrics.sync.header import NO_WAIT, SIZE, Header, Participation, word_of
from hjepa_dist_metrics.sync.manifest import Manifest, Membership
from hjepa_dist_metrics.sync.merged import Merged
from hjepa_dist_metrics.sync.payload import Payload
from hjepa_dist_metrics.sync.report import Meter, SyncReport, run
from hjepa_dist_metrics.sync.snapshot import Snapshot, StateIndex, snapshot
from hjepa_dist_metrics.sync.thread import SyncThread
from hjepa_dist_metrics.sync.tree import Block, steps
from hjepa_dist_metrics.sync.verdict import Report

R = TypeVar("R")
DEFAULT_SYNC_TIMEOUT = 60.0
_HOST = torch.device("cpu")
_MOST_CONFLICTS = 10

# One for the process: the order in which syncs are asked for is then the order in which they run, also over
# several owners and groups.
_thread = SyncThread()


_states: Callable[[Syncable], Mapping[str, State]] = operator.attrgetter("states")
_failure: Callable[[Syncable], str | None] = operator.attrgetter("failure")


class Syncable(Protocol):
    """What a sync asks of a metric."""

    @property
    def states(self) -> Mapping[str, State]:
        """Return the local states by name."""

    @property
    def failure(self) -> str | None:
        """Return how an update failed, None where none did."""


class SyncRequest(NamedTuple):
    """Ask for a sync of `members`, by name, over the ranks of a context.

    With a `participation` the ranks need not hold the same metrics: `offered` are what this rank adds where
    another one asks for it, `known` all that it could compute, and `patience` says where it waits, "" for a
    rank that does not wait for as long as the others live.
    """

    members: Mapping[str, Syncable]
    context: ProcessContext
    timeout: float
    participation: Participation | None = None
    offered: Mapping[str, Syncable] = {}
    known: Iterable[str] = ()
    patience: str = ""


class SyncResult(NamedTuple):
    """Hold what a sync brought back: merged states of this rank's and other ranks' metrics.

    `channel` allows for one more reduction, of what only some ranks can compute.
    """

    merged: Merged
    participation: Participation
    session: SyncSession
    channel: Channel

    @property
    def asked(self) -> frozenset[str]:
        """Return the metrics that some rank asked for."""
        member = self.merged.manifest.membership
        return frozenset(self.merged) if member is None else member.asked

    @property
    def complete(self) -> bool:
        """Return whether all ranks know all metrics that are asked for."""
        member = self.merged.manifest.membership
        return member is None or member.complete


@dataclass
class _Wave:
    """Hold the failure that ends the background syncs asked for before the owner saw it."""

    error: BaseException | None = None


@dataclass
class _Prepared:
    """Hold what one sync takes along: a snapshot, or the failures that stand in its place."""

    manifest: Manifest
    taken: Snapshot | None
    failures: dict[str, str] = field(default_factory=dict)
    cause: Exception | None = None


class SyncSession:
    """Merge the states of metrics over ranks, each sync numbered; `name` tells owners apart.

    `outcome` is what the formulas made of the last sync: the tags that they returned, or how they failed. The
    next sync compares it over ranks.
    """

    def __init__(self, name: str = "") -> None:
        self.name, self._name_word = name, word_of(name)
        self.number = 0
        self.report: SyncReport | None = None
        self.outcome: tuple[str, ...] = ()
        self._outcome_word = 0
        self._wave = _Wave()
        self._manifests: dict[tuple[str, ...], Manifest] = {}
        self._index: StateIndex | None = None
        self._most_done = 0
        self._tags: tuple[str, ...] = ()
        self._sorted_tags: tuple[str, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what holds for this process alone: a copy looks for itself."""
        return {**vars(self), "_manifests": {}, "_index": None}

    def run(self, request: SyncRequest, then: Callable[[SyncResult], R]) -> R:
        """Merge here and now, after the syncs that are under way, and return `then(result)`."""
        return _thread.run(self._job(request, then))

    def submit(self, request: SyncRequest, then: Callable[[SyncResult], R]) -> Future[R]:
        """Take a snapshot here and now, and merge it on the sync thread.

        After a failure that the owner has not seen yet, it fails alike and sends nothing: the other ranks may
        have seen theirs, and would never come.
        """
        job, wave = self._job(request, then), self._wave

        def unless_failed() -> R:
            if wave.error is not None:
                raise wave.error
            try:
                return job()
            except BaseException as error:
                wave.error = error
                raise

        return _thread.submit(unless_failed)

    def again(self, result: SyncResult, state: State) -> Any:
        """Merge one more state in the sync that brought `result`, on its thread, and return it.

        A collective call, for what only some ranks can compute from the merged states.
        """
        channel = result.channel
        manifest = Manifest({"more.state": state})
        context = ProcessContext(channel.rank, channel.world_size, _HOST, channel.rank == 0, channel=channel)
        request = SyncRequest({}, context, DEFAULT_SYNC_TIMEOUT)
        first, self.number = self.report, self.number + 1
        self._begin(channel, "")
        merged = self.reduce(_Prepared(manifest, snapshot({"more.state": state}, manifest)), request, channel)
        self.report = first
        return merged.merged["more"]["state"]

    def judged(self, formulas: Callable[[], dict[str, R]]) -> dict[str, R]:
        """Return what formulas make of a sync; the next sync compares their tags, or failure, over ranks."""
        try:
            values = formulas()
        except Exception as error:
            self._set_outcome((f"{type(error).__name__}: {error}",))
            raise
        if tuple(values) != self._tags:
            # Ranks may have their metrics in another order.
            self._tags, self._sorted_tags = tuple(values), tuple(sorted(values))
        self._set_outcome(self._sorted_tags)
        return values

    def _set_outcome(self, outcome: tuple[str, ...]) -> None:
        if outcome is not self.outcome:
            self.outcome, self._outcome_word = outcome, word_of("\0".join(outcome))

    def acknowledge(self) -> None:
        """Let syncs that are asked for from now on run: the owner has seen the failure."""
        self._wave = _Wave()

    def _job(self, request: SyncRequest, then: Callable[[SyncResult], R]) -> Callable[[], R]:
        prepared = self._prepare(request)
        if prepared.cause is not None and request.context.world_size == 1:
            raise prepared.cause

        def job() -> R:
            channel = open_channel(request.context, request.timeout)
            self.number += 1
            self._begin(channel, request.patience)
            return then(self.reduce(prepared, request, channel))

        return job

    def _begin(self, channel: Channel, patience: str) -> None:
        peers = [step.peer for step in steps(channel.rank, channel.world_size)]
        seen = f"; at the last sync the others had done {self._most_done} steps at most"
        channel.begin(peers, patience and patience + seen)

    def reduce(self, prepared: _Prepared, request: SyncRequest, channel: Channel) -> SyncResult:
        """Merge what was prepared over the channel's ranks; every rank raises the same error."""
        meter = Meter(channel)
        merged = run(self._block(prepared, request, channel), meter)
        if merged.report is not None:
            self._fail(merged.report, channel)
        header = merged.header
        self.report = meter.report(header.slowest)
        participation = header.participation
        self._most_done = participation.steps_done
        channel.end(header.most_bytes + SIZE)
        states = Merged(merged.manifest, merged.payload)
        if found := states.conflicts():
            shown = "; ".join(found[:_MOST_CONFLICTS])
            raise DesyncError(f"the ranks disagree on replicated values: {shown}")
        return SyncResult(states, participation, self, channel)

    def _fail(self, report: Report, channel: Channel) -> None:
        self._set_outcome(())
        error = report.exception()
        if isinstance(error, (RankFailureError, SyncTimeoutError)):
            channel.close(error)
        raise error

    def _block(self, prepared: _Prepared, request: SyncRequest, channel: Channel) -> Block:
        """Return this rank's block; a report takes the payload's place where the rank has failures."""
        number, outcome, manifest = self.number, self.outcome, prepared.manifest
        part = request.participation
        wait = 0 if self.report is None else int(self.report.waited * 1e9)
        header = Header.of(
            self._name_word,
            number,
            self._outcome_word,
            manifest.digest,
            wait or NO_WAIT,
            channel.rank,
            part,
        )

        describe = partial(Report.own, number, self.name, outcome)
        ranks = range(channel.rank, channel.rank + 1)
        if prepared.taken is None:
            nothing = Payload(np.zeros(0), {})
            block = Block(header, manifest, nothing, ranks, describe)
            return block.failed(describe(ranks, manifest.lines, prepared.failures))
        payload = prepared.taken.payload().signed(manifest, channel.rank, part.steps_done if part else 0)
        return Block(header, manifest, payload, ranks, describe)

    def _prepare(self, request: SyncRequest) -> _Prepared:
        """Take a snapshot of all states; what fails is for all ranks to hear of."""
        members = {**request.offered, **request.members} if request.offered else request.members
        failures: dict[str, str] = {}
        if any(map(_failure, members.values())):
            failed = ((name, metric.failure) for name, metric in members.items())
            failures = {
                f"metric {name!r} failed to update": text for name, text in failed if text is not None
            }
        membership = None
        if request.participation is not None:
            membership = Membership(frozenset(request.members), frozenset(request.known))
        try:
            held = [*map(_states, members.values())]
        except Exception as error:
            return self._without_states(members, membership, failures, error)
        index = self._index
        if index is None or not index.holds(tuple(members), held) or index.manifest.membership != membership:
            index = self._index = self._indexed(members, held, membership)
        return _Prepared(index.manifest, None if failures else index.snapshot(), failures)

    def _without_states(
        self,
        members: Mapping[str, Syncable],
        membership: Membership | None,
        failures: dict[str, str],
        error: Exception,
    ) -> _Prepared:
        """Return what a rank takes to a sync whose states it cannot have."""
        name = next(name for name, metric in members.items() if not _has_states(metric))
        failures[f"metric {name!r} failed to give its states"] = f"{type(error).__name__}: {error}"
        return _Prepared(Manifest({}, membership), None, failures, error)

    def _indexed(
        self,
        members: Mapping[str, Syncable],
        held: Sequence[Mapping[str, State]],
        membership: Membership | None,
    ) -> StateIndex:
        states = {
            f"{name}.{state}": value
            for name, own in zip(members, held, strict=True)
            for state, value in own.items()
        }
        return StateIndex(tuple(members), held, states, self._manifest(states, membership))

    def _manifest(self, states: Mapping[str, State], membership: Membership | None) -> Manifest:
        """Return the manifest of these states: the last one of the same names where it still holds."""
        names = tuple(states)
        known = self._manifests.get(names)
        if known is None or not known.describes(states, membership):
            known = self._manifests[names] = Manifest(states, membership)
        return known


def _has_states(metric: Syncable) -> bool:
    try:
        return metric.states is not None
    except Exception:  # it is the one that failed before, whose error is raised
        return False
