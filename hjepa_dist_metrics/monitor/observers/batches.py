"""The batches that a loader yields, where the loop takes them from `TrainingMonitor.batches`."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any

from hjepa_dist_metrics.metrics.data.batches import BatchContent
from hjepa_dist_metrics.monitor.observer import Observer, Scope
from hjepa_dist_metrics.parallel.sharding.replicas import have_own_batches

# Batches of this many steps, up to and including the one that logs, are looked at: those of several steps in
# a row, so that the same one at every step is seen, and of no others.
_STEPS = 4


class Batches(Observer):
    """Compare the first batch of some steps with the rank's own before it and those of other ranks."""

    def attach(self, scope: Scope) -> None:
        """Begin to observe a run."""
        super().attach(scope)
        self._last_step: int | None = None  # of which a batch was looked at
        self._exhausted = True
        self._starts_pass = False
        self._epoch: int | None = None
        self._metric: BatchContent | None = None
        self._recent: list[int] = []  # of a checkpoint

    def begin_epoch(self, epoch: int) -> None:
        """Note the number of the epoch, where it is known without the loader."""
        self._starts_pass |= epoch != self._epoch
        self._epoch = epoch

    def begin_pass(self, loader: Any) -> None:
        """Note that a loader begins to yield.

        Its batches are compared with those before where the last loader was left early: a loop may make an
        iterator for every step. A loader of one batch, which is all data, repeats nothing.
        """
        if self._exhausted or (isinstance(loader, Sized) and _length(loader) == 1):
            self._starts_pass = True
        self._exhausted = False

    def end_pass(self) -> None:
        """Note that a loader has yielded its last batch."""
        self._exhausted = True

    def look(self, batch: Any) -> None:
        """Look at a batch that is about to be used, on the steps up to a log."""
        scope, step = self.scope, self.scope.step
        if step == self._last_step or not self._is_watched(step):
            return
        self._last_step = step
        metric = scope.metric("batches", BatchContent, self._make)
        if self._starts_pass:
            self._starts_pass = False
            metric.start_pass()
        scope.run(lambda: metric.update(batch, step))

    def state_dict(self) -> dict[str, Any]:
        """Return what the next batches are compared with."""
        recent = self._recent if self._metric is None else self._metric.recent
        return {"recent": recent, "exhausted": self._exhausted, "epoch": self._epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, in the pass over the loader that it was made in."""
        self._recent, self._exhausted, self._epoch = state["recent"], state["exhausted"], state["epoch"]
        if self._metric is not None:
            self._metric.recent = self._recent

    def _make(self) -> BatchContent:
        scope, layout = self.scope, self.scope.layout
        if layout is None:
            compared = have_own_batches(scope.model, scope.context.world_size)
        else:  # of the ranks that work on one batch together, one
            compared = layout.adds_samples
        metric = BatchContent(compared)
        metric.recent, self._metric = self._recent, metric
        return metric

    def _is_watched(self, step: int) -> bool:
        between = self.scope.steps_between("scalars")
        return between is not None and (-step % between < _STEPS or self.scope.is_due("scalars"))


def _length(loader: Sized) -> int | None:
    """Return the number of batches; None where a loader does not know it, as one of a stream."""
    try:
        return len(loader)
    except TypeError:
        return None
