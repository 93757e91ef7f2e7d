"""Gradients, read when they are whole and not yet clipped, and their clipping."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from hjepa_dist_metrics.metrics import GradientClipping, GradientFlow
from hjepa_dist_metrics.metrics.optimization.copy_check import CopyCheck
from hjepa_dist_metrics.metrics.optimization.gradients import Report
from hjepa_dist_metrics.metrics.optimization.tracked_parameters import TrackedParameters, optimizer_groups
from hjepa_dist_metrics.monitor.observer import Observer

Update = Callable[[], None]
_NORM = "gradient/global_norm_before_clip"


class Gradients(Observer):
    """Read the gradients on the steps that log them: in `clip_`, or after the backward in a loop without."""

    def __init__(self) -> None:
        self._clips = False
        self._before_clipping: list[Update] = []
        self._check: CopyCheck | None = None

    def before_clipping(self, observe: Update) -> None:
        """Call `observe` in every `clip_`, when the gradients are whole and not yet clipped."""
        self._before_clipping.append(observe)

    def after_backward(self) -> None:
        """Read the gradients, unless `clip_` does: there it is right under a GradScaler too."""
        if not self._clips:
            self.read()

    def read(self) -> None:
        """Read the gradients if the coming step logs them."""
        if not self.scope.config.gradients.enabled:
            return
        if not self._clips:
            self._compare_copies()
        flows = []
        if self.scope.is_due("scalars"):
            flows.append(self._flow("gradient_flow", "numbers", "scalars"))
        if self.scope.is_due("histograms"):
            flows.append(self._flow("gradient_histograms", "histograms", "histograms"))
        if flows:
            self.scope.run(lambda: flows[0].update(*flows[1:]))

    def _compare_copies(self) -> None:
        """Compare the parameters over the ranks, at the first log of a loop that has not clipped yet.

        Not their gradients, which may be those of a micro-batch and not reduced; the sync compares these.
        """
        scope = self.scope
        if (
            self._check is None
            and scope.layout is None
            and scope.gather is not None
            and scope.is_due("scalars")
        ):
            self._check = CopyCheck(TrackedParameters(scope.model), scope.context, scope.gather)
            self._check.require_same_parameters()

    def clip_(self, max_norm: float) -> Tensor:
        """Read the gradients, then clip them; return the norm before."""
        self._look_before_clipping()
        return self._clipping().clip_(max_norm)

    @contextmanager
    def clipping(self, max_norm: float | None = None) -> Iterator[None]:
        """Read the gradients, and their norm before and after the body, which clips them."""
        self._look_before_clipping()
        with self._clipping().measuring(None if self.scope.is_due("scalars") else max_norm):
            yield

    def _look_before_clipping(self) -> None:
        self._clips = True
        self.read()
        for observe in self._before_clipping:
            self.scope.run(observe)

    def _flow(self, name: str, report: Report, family: str) -> GradientFlow:
        settings, scope = self.scope.config.gradients, self.scope

        def make() -> GradientFlow:
            return GradientFlow(
                scope.model,
                settings.depth,
                settings.patterns,
                per_parameter=settings.per_parameter,
                report=report,
                context=scope.context,
                layout=scope.layout,
            )

        return scope.metric(name, GradientFlow, make, family)

    def _clipping(self) -> GradientClipping:
        return self.scope.metric("clipping", GradientClipping, self._make_clipping)

    def _make_clipping(self) -> GradientClipping:
        groups = optimizer_groups(self.scope.optimizers)
        several = groups if len(groups) > 1 else None
        scope = self.scope
        return GradientClipping(
            scope.model, groups=several, context=scope.context, layout=scope.layout, gather=scope.gather
        )
