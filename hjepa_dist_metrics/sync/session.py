"""Syncs of one owner, numbered: take a snapshot, merge it over ranks in order, hand over what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from hjepa_dist_metrics.distributed import ProcessContext, open_channel
from hjepa_dist_metrics.distributed.transport import Channel
from hjepa_dist_metrics.errors import DesyncError, RankFailureError, SyncTimeoutError
from hjepa_dist_metrics.states import State
from hjepa_dist_metrics.sync.header import MAGIC, SIZE, Header, Participation, word_of
from hjepa_dist_metrics.sync.manifest import Lines, Manifest, Membership
from hjepa_dist_metrics.sync.merged import Merged
from hjepa_dist_metrics.sync.payload import Payload
from hjepa_dist_metrics.sync.report import Meter, SyncReport, run
from hjepa_dist_metrics.sync.snapshot import Snapshot, snapshot
from hjepa_dist_metrics.sync.thread import SyncThread
from hjepa_dist_metrics.sync.tree import Block, steps
from hjepa_dist_metrics.sync.verdict import Report

R = TypeVar("R")
DEFAULT_SYNC_TIMEOUT = 60.0
_HOST = torch.device("cpu")
_MOST_CONFLICTS = 10
_NO_WAIT = (1 << 63) - 1

# One for the process: the order in which syncs are asked for is then the order in which they run, also over
# several owners and groups.
_thread = SyncThread()


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


@dataclass(frozen=True)
class SyncResult:
    """Hold what a sync brought back: merged states of this rank's and other ranks' metrics.

    `asked` are the metrics that some rank asked for; `complete` tells that all ranks know all of them.
    `request` and `channel` allow for one more reduction, of what only some ranks can compute.
    """

    merged: Merged
    participation: Participation
    asked: frozenset[str]
    complete: bool
    session: SyncSession
    channel: Channel


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
        self.name = name
        self.number = 0
        self.report: SyncReport | None = None
        self.outcome: tuple[str, ...] = ()
        self._wave = _Wave()
        self._manifests: dict[tuple[str, ...], Manifest] = {}
        self._most_done = 0

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what holds for this process alone: a copy looks for itself."""
        return {**vars(self), "_manifests": {}}

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
            self.outcome = (f"{type(error).__name__}: {error}",)
            raise
        self.outcome = tuple(sorted(values))  # ranks may have their metrics in another order
        return values

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
        peers = dict.fromkeys(step.peer for step in steps(channel.rank, channel.world_size))
        seen = f"; at the last sync the others had done {self._most_done} steps at most"
        channel.begin(peers, patience and patience + seen)

    def reduce(self, prepared: _Prepared, request: SyncRequest, channel: Channel) -> SyncResult:
        """Merge what was prepared over the channel's ranks; every rank raises the same error."""
        meter = Meter(channel)
        merged = run(self._block(prepared, request, channel), meter)
        if merged.report is not None:
            self._fail(merged.report, channel)
        header = merged.header
        self.report = meter.report(header.slowest if header.wait != _NO_WAIT else None)
        self._most_done = header.participation.steps_done
        channel.end(header.most_bytes + SIZE)
        states = Merged(merged.manifest, merged.payload)
        if found := states.conflicts():
            shown = "; ".join(found[:_MOST_CONFLICTS])
            raise DesyncError(f"the ranks disagree on replicated values: {shown}")
        member = merged.manifest.membership
        asked = frozenset(states) if member is None else member.asked
        complete = member is None or member.complete
        return SyncResult(states, header.participation, asked, complete, self, channel)

    def _fail(self, report: Report, channel: Channel) -> None:
        self.outcome = ()
        error = report.exception()
        if isinstance(error, (RankFailureError, SyncTimeoutError)):
            channel.close(error)
        raise error

    def _block(self, prepared: _Prepared, request: SyncRequest, channel: Channel) -> Block:
        """Return this rank's block; a report takes the payload's place where the rank has failures."""
        number, outcome, manifest = self.number, self.outcome, prepared.manifest
        part = request.participation
        wait = 0 if self.report is None else int(self.report.waited * 1e9)
        header = Header(
            magic=MAGIC,
            collection=word_of(self.name),
            number=number,
            uneven=int(part is not None),
            results=word_of("\0".join(outcome)),
            manifest=manifest.digest,
            failed=0,
            payload_bytes=0,
            most_bytes=0,
            wait=wait or _NO_WAIT,
            slowest=channel.rank,
            participation=part or Participation(),
        )

        def describe(ranks: range, lines: Lines, failures: Mapping[str, str]) -> Report:
            return Report.own(ranks, number, self.name, lines, failures, outcome)

        ranks = range(channel.rank, channel.rank + 1)
        if prepared.taken is None:
            nothing = Payload(np.zeros(0), {})
            block = Block(header, manifest, nothing, ranks, describe)
            return block.failed(describe(ranks, manifest.lines, prepared.failures))
        payload = prepared.taken.payload().signed(manifest, channel.rank, header.participation.steps_done)
        return Block(header, manifest, payload, ranks, describe)

    def _prepare(self, request: SyncRequest) -> _Prepared:
        """Take a snapshot of all states; what fails is for all ranks to hear of."""
        members = {**request.offered, **request.members}
        failed = {name: text for name, metric in members.items() if (text := metric.failure) is not None}
        failures = {f"metric {name!r} failed to update": text for name, text in failed.items()}
        name, states, cause = "", {}, None
        try:
            for name, metric in members.items():
                states.update({f"{name}.{state}": held for state, held in metric.states.items()})
        except Exception as error:
            failures[f"metric {name!r} failed to give its states"] = f"{type(error).__name__}: {error}"
            cause = error
        membership = None
        if request.participation is not None:
            membership = Membership(frozenset(request.members), frozenset(request.known))
        manifest = self._manifest(states, membership)
        taken = None if failures else snapshot(states, manifest)
        return _Prepared(manifest, taken, failures, cause)

    def _manifest(self, states: Mapping[str, State], membership: Membership | None) -> Manifest:
        """Return the manifest of these states: the last one of the same names where it still holds."""
        names = tuple(states)
        known = self._manifests.get(names)
        if known is None or not known.describes(states, membership):
            known = self._manifests[names] = Manifest(states, membership)
        return known
