"""TrainingMonitor: observe the training loop, sync when it is due, write what is true of the whole job."""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Self

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.logging.output import agree_on_run, open_output
from hjepa_dist_metrics.metrics import DistributedMetric, MetricCollection
from hjepa_dist_metrics.metrics.base import as_value
from hjepa_dist_metrics.metrics.collection import apply_formulas
from hjepa_dist_metrics.metrics.optimization.tracked_parameters import optimizer_list
from hjepa_dist_metrics.metrics.uneven import UnevenResult
from hjepa_dist_metrics.monitor.health.alerts import Alert, AlertBook, OnAlert, Rule
from hjepa_dist_metrics.monitor.health.rules import RunRules
from hjepa_dist_metrics.monitor.metric_registry import EPOCH, FIGURES, MetricRegistry
from hjepa_dist_metrics.monitor.observers.gradients import GradientWatch
from hjepa_dist_metrics.monitor.observers.representations import Encoders, Masks, Observing, Streams
from hjepa_dist_metrics.monitor.observers.timing import SpeedWatch
from hjepa_dist_metrics.monitor.publishing import Publisher
from hjepa_dist_metrics.monitor.uneven_ranks import LogRequest, UnevenRanks, WaitPhase
from hjepa_dist_metrics.monitor.validation import as_levels, require_pairs, require_samples
from hjepa_dist_metrics.parallel import ProcessContext
from hjepa_dist_metrics.parallel.sharding.gradient_hooks import CommHook
from hjepa_dist_metrics.settings.schema import LoggingConfig, from_mapping
from hjepa_dist_metrics.sinks import HParam
from hjepa_dist_metrics.sinks.background import SIGNAL_FLUSH_SECONDS
from hjepa_dist_metrics.sinks.signals import SignalFlush
from hjepa_dist_metrics.sync import SyncHandle, drain_syncs
from hjepa_dist_metrics.values import Scalar

B = TypeVar("B")

# What TensorBoard's table of runs shows beside their settings.
COMPARED = ("loss/total", "collapse/effective_rank", "val/knn_accuracy", "performance/samples_per_second")
VALIDATION_LOSS = "val/loss"


class TrainingMonitor(AbstractContextManager["TrainingMonitor"]):
    """Watch a training loop, on every rank alike; the main process writes.

    `config` is a `LoggingConfig`, a mapping with its keys, or a whole run's configuration with a section
    `logging`. `step` 0 is the first optimizer step. With `resume` the run goes on in the same files: from
    `start_step`, where what was written at that step and later is replaced, or by default behind the last
    step. Making the object is a collective call. `level_weights` are the objective's weights of its
    hierarchy levels. `hparams` are settings by name, for TensorBoard's table that compares runs. `encoders`
    are the context and the target encoder, where they are not the model's attributes `context_encoder` and
    `target_encoder`. With several optimizers, a list of them, parameter groups are numbered through, or go by
    their "name". `on_alert` is called with each alert that begins, on every rank, at times on the thread that
    runs the syncs: it may not wait for one, as `state_dict` does.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        config: Any = None,
        *,
        context: ProcessContext | None = None,
        level_weights: Iterable[float] | None = None,
        start_step: int | None = None,
        steps_per_epoch: int | None = None,
        resume: bool = False,
        hparams: Mapping[str, HParam] | None = None,
        encoders: Encoders | None = None,
        on_alert: OnAlert | None = None,
    ) -> None:
        self.model, self.optimizers = model, optimizer_list(optimizer)
        self.config: LoggingConfig = from_mapping(config)
        self.context = context or ProcessContext.current()
        self.run_name, self._first = agree_on_run(self.config, self.context, resume, start_step)
        self.step_number = self._first
        self.families = MetricRegistry(
            MetricCollection(
                context=self.context,
                sync_timeout=self.config.sync_timeout,
                name=f"monitor of {self.run_name}",
            ),
            level_weights,
            self.config.cadences(steps_per_epoch).scalars,
        )
        self._observing = Observing(self.families, model, encoders)
        rules = RunRules(self.families.collapse_dims).rules
        self.alert_book = AlertBook(self.config.alerts, rules, on_alert)
        self._stopping: set[str] = set()
        self._handle: SyncHandle[Any] | None = None
        num_levels = None if self.families.level_weights is None else len(self.families.level_weights)
        self._sink = open_output(self.config, self.context, self.run_name, self._first, num_levels)
        self._sink.write_hparams(hparams or {}, COMPARED)
        book = self.alert_book if self.config.alerts.enabled else None
        self._publisher = Publisher(self._sink, self.context, book, explain=not resume)
        self._cadences = self.config.cadences(steps_per_epoch).every()
        self._speed = SpeedWatch(self.families)
        self._ranks = UnevenRanks(
            self.families.collection, [*self._cadences, EPOCH], self._publish, self._followed
        )
        self._finished = False
        self._last_step_end: float | None = None
        self._own_seconds = 0.0
        self._gradients = GradientWatch(
            self.families, model, self.optimizers, self.config.gradients, self.due, self._observe_in_time
        )

        # The last to be registered is the first to be called: before the files close. A signal goes to all
        # ranks, and each is needed for the syncs that all have asked for already.
        atexit.register(self._release)
        self._signals = SignalFlush(lambda: drain_syncs(SIGNAL_FLUSH_SECONDS))

    # -- observing -------------------------------------------------------------------------------------

    def batches(self, loader: Iterable[B]) -> Iterator[B]:
        """Yield the loader's batches and time the wait for each."""
        iterator = iter(loader)
        self._start_clock()
        while True:
            begun = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._speed.waited(time.perf_counter() - begun)
            yield batch

    def forward(self) -> AbstractContextManager[None]:
        """Time the body as forward; may be entered once for each micro-step."""
        self._start_clock()
        return self._speed.phase("forward")

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Time the body as backward; on steps that log gradients, read them afterwards.

        Where `clip_grad_norm_` is called they are read there, which is right under a GradScaler too.
        """
        with self._gradients.backward(), self._speed.phase("backward"):
            yield
        self._gradients.after_backward()

    def watch_gradient_noise(
        self, model: nn.Module | None = None, *, hook: CommHook | None = None, hook_state: Any = None
    ) -> None:
        """Estimate the gradient noise scale (arXiv 1812.06162) from the `backward` of the steps that log.

        What `logging.gradients.noise: true` does by itself. Here give the wrapped model where the monitor has
        another, and DDP's communication hook of your own instead of registering it. On many ranks the model
        must be in DistributedDataParallel or `fully_shard`; on one process the loop must accumulate.
        """
        self._gradients.watch_noise(model, hook, hook_state)

    def observe_gradients(self) -> None:
        """Read the gradients if the coming `step` logs them: after `unscale_`, in a loop without clipping."""
        self._gradients.read()

    def optimizer_step(self) -> AbstractContextManager[None]:
        """Time the body as the optimizer's step."""
        return self._speed.phase("optimizer")

    def count_flops(self, step: Callable[[], Any], samples: int, peak_flops: float | None = None) -> float:
        """Run `step`, a forward and backward of `samples` samples, once and count its operations for each.

        From then on `performance/mfu` is written, where the devices' peak is known or given. Every rank must
        call it. The step's gradients are yours to discard.
        """
        return self._speed.count_flops(step, samples, peak_flops)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Keep the body, an evaluation or a checkpoint, out of the training's throughput."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            if self._last_step_end is not None:
                self._last_step_end += time.perf_counter() - begun

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Clip the model's gradients by their global norm, keep count, and return the norm before."""
        return self._gradients.clip_(max_norm)

    def add_metric(self, name: str, metric: DistributedMetric, family: str = "scalars") -> None:
        """Sync and write a metric of your own, at the cadence of `family`; its `update` is yours to call.

        The family "epoch" is what `end_epoch` logs.
        """
        valid = [*self._cadences, EPOCH]
        if family not in valid:
            raise ConfigError(f"expected a cadence family of {valid}, got {family!r}")
        self.families.add(name, metric, family)

    def add_rule(self, name: str, rule: Rule) -> None:
        """Watch the merged values by a rule of your own; it raises alerts as the built-in ones do."""
        if name in self.alert_book.rules:
            raise ConfigError(f"there is an alert rule named {name!r} already")
        self.alert_book.rules[name] = rule

    def before_clipping(self, observe: Callable[[], None]) -> None:
        """Call `observe` in every `clip_grad_norm_`, when the gradients are whole and not yet clipped.

        For metrics of your own that read gradients: `monitor.before_clipping(metric.update)`.
        """
        self._gradients.before_clipping(observe)

    def new_objective(self) -> None:
        """Tell that the loss has another meaning from the coming step on: a term was switched on, say.

        Losses from before are forgotten where later ones are judged by them: the step up is no spike.
        """
        self.families.stability().reset()

    def also_as(self, names: Mapping[str, str]) -> None:
        """Write numbers under second tags too: `names` maps a tag to its other one."""
        self._publisher.also_as(names)

    def due(self, family: str) -> bool:
        """Return whether the coming `step` logs this family, so that costly inputs are made only then."""
        return self._is_due(family, self.step_number)

    def step(
        self,
        samples: int,
        losses: Mapping[str, Any] | Tensor | float | None = None,
        *,
        count: Any = None,
        tokens: int = 0,
        features: Streams | None = None,
        valid: Masks = None,
        ids: Tensor | None = None,
        context_features: Tensor | None = None,
        context_valid: Tensor | None = None,
        predictions: Tensor | Sequence[Tensor] | None = None,
        targets: Tensor | Sequence[Tensor] | None = None,
        prediction_valid: Tensor | Sequence[Tensor | None] | None = None,
        mask: Tensor | None = None,
        momentum: float | None = None,
        momentum_target: float = 1.0,
        scalars: Mapping[str, Any] | None = None,
        images: Tensor | None = None,
        blocks: Tensor | None = None,
    ) -> None:
        """Record one optimizer step of this rank, and sync and write what is due.

        `samples` is this rank's number of samples; `losses` are means over `count` samples or tokens of this
        rank (`samples` by default): a mapping with "loss", "loss_h0", ..., or the loss alone.

        On steps that log representations: `features` are one stream [N, D] or [B, N, D], several by name, or
        a list over the levels of a hierarchy, with `valid` masks in the same form; `context_features` are the
        context encoder's; `predictions` and `targets` are lists over levels, or one tensor each where there
        is one level, `prediction_valid` the tokens that count; `ids` are the samples' global numbers, as in
        `Collapse.update`. On steps that log figures: `images` [B, C, H, W] are what mask, predictions and
        targets are drawn on, `blocks` int [B, K, 4] the masks' rectangles (top, left, height, width in
        patches; height 0 for none).

        On all steps: `mask` bool [B, N] or [B, rows, columns], True = masked, one a sample, under gradient
        accumulation those of all micro-batches or of one; `momentum`, of the target
        encoder's update in this step, and `momentum_target`, where its schedule ends; `scalars` are numbers
        that every rank has alike, by tag. Raises the errors of syncs: `DesyncError` where ranks disagree.
        """
        begun, now = time.perf_counter(), self.step_number
        observing, represents = self._observing, self._is_due("representations", now)
        self.families.collection.raise_errors()
        require_samples(samples)
        require_pairs(predicted := as_levels(predictions), wanted := as_levels(targets))
        seen = as_levels(prediction_valid)
        self._gradients.step(samples)
        self._observe(lambda: self._observe_step(samples, losses, count, tokens, begun))
        if scalars:
            self._observe(lambda: self.families.scalars(scalars).update(scalars))
        if mask is not None:
            self._observe(lambda: observing.mask(mask, samples, self._is_due("scalars", now)))
        if momentum is not None:
            dues = [self._is_due("scalars", step) for step in (now, now + 1)]
            self._observe(lambda: observing.teacher(momentum, momentum_target, *dues))
        if features is not None and represents:
            binned = self._is_due("histograms", now)
            self._observe(lambda: observing.features(features, valid, ids, binned))
        if context_features is not None and represents:
            self._observe(lambda: observing.context(context_features, context_valid, ids))
        if predicted is not None and represents:
            self._observe(lambda: observing.predictions(predicted, wanted, seen, ids))
        if images is not None and self.config.figures.enabled and self._is_due(FIGURES, now):
            shown = {"mask": mask, "predictions": predicted, "targets": wanted}
            more = {"valid": seen, "ids": ids, "blocks": blocks}
            self._observe(lambda: self._observe_figures(images, shown, more))
        if self._handle is not None:
            self._decide_stop()
        self._ranks.steps_done += 1
        due = [family for family, every in self._cadences.items() if every.due(now)]
        if due:
            self._observe(lambda: self._speed.refresh(due))
            self._log(self.families.names(due), LogRequest(now, tuple(due)))
        self.step_number += 1
        self._own_seconds += time.perf_counter() - begun

    @property
    def should_stop(self) -> str | None:
        """Return the alert rule of `logging.alerts.stop_on` that has fired, None while training may go on.

        The same after the same `step` on every rank: with background syncs the step after one that logs waits
        for its sync, and decides by the result; inline syncs and `log` decide at once.
        """
        return min(self._stopping, default=None)

    def _decide_stop(self) -> None:
        """Decide by all that is known by now, which is the same on every rank: no sync is under way."""
        if not self.config.alerts.stop_on:
            return
        if self._handle is not None:
            self._handle.result()
            self._handle = None
        self._stopping = self._publisher.firing() & set(self.config.alerts.stop_on)

    def end_epoch(self) -> None:
        """Sync and write what is logged once an epoch: `train_epoch/loss`. A collective call.

        Ranks that come early go on to sync at the steps at which the others log, with nothing to add, until
        all have come; then all go on at the same step.
        """
        names = self.families.names([EPOCH])
        self.step_number, pending = self._ranks.wait(WaitPhase.EPOCH_END, self.step_number, bool(names))
        if pending:
            self._log(names, LogRequest(self.last_step))

    # -- writing ---------------------------------------------------------------------------------------

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Write values that are the job's already, a probe's accuracy for instance: numbers or values by tag.

        They are written at the last finished step by default, and the alert rules see them. Every rank calls
        this with the same values.
        """
        ready = {tag: as_value(value, tag) for tag, value in values.items()}
        at = self.last_step if step is None else step
        if self._handle is not None:
            self._decide_stop()  # so that the rules see values in the same order on every rank
        validation = ready.get(VALIDATION_LOSS)
        if isinstance(validation, Scalar):
            self.families.stability().validate(validation.value)
        self._publisher.write(at, ready)
        self._decide_stop()

    @property
    def first(self) -> dict[str, float]:
        """Return the first number written under each tag, on every rank."""
        return dict(self._publisher.first)

    @property
    def latest(self) -> dict[str, float]:
        """Return the newest number of each tag, on every rank."""
        return dict(self._publisher.latest)

    @property
    def last_step(self) -> int:
        """Return the number of the last finished step; 0 before the first."""
        return max(self.step_number - 1, 0)

    @property
    def alerts(self) -> list[Alert]:
        """Return the alerts so far, in order."""
        return list(self.alert_book.alerts)

    @property
    def failures(self) -> list[str]:
        """Return what was reported about outputs that failed."""
        return list(getattr(self._sink, "failures", ()))

    def flush(self) -> None:
        """Wait for the syncs under way and make everything readable: before a checkpoint, for instance."""
        self.families.collection.close()
        self._publisher.finish_drawing()
        self._sink.flush()

    def finish(self) -> None:
        """Log the steps since the last log, together with the ranks that are still training.

        A collective call, made by `close`. A rank that ran out of batches goes on to sync at the steps at
        which the others log, with nothing to add, for as long as these train, until all have finished.
        """
        logged = [family for family, every in self._cadences.items() if every.steps is not None]
        if self._finished or not logged:
            return
        self._finished = True
        self._speed.refresh([family for family in logged if family == "scalars"])
        names = [n for n in self.families.names(logged) if self.families.collection[n].touched]
        self.step_number, pending = self._ranks.wait(WaitPhase.RUN_END, self.step_number, bool(names))
        if pending:
            self._log(names, LogRequest(self.last_step), last=True)
        self.flush()

    def close(self) -> None:
        """Finish, and close the files. Called at the end of the `with` block."""
        try:
            self.finish()
            self.families.collection.close()
        finally:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        succeeded = False
        try:
            if error is None:
                self.finish()
                self.families.collection.close()
                succeeded = True
        finally:
            self._sink.write_status(succeeded)
            self._release()

    def _release(self) -> None:
        atexit.unregister(self._release)
        self._signals.restore()
        self._gradients.release()
        drain_syncs()  # what is still on its way is still written: it may tell why the run ends
        self._publisher.close()
        self._sink.close()

    def state_dict(self) -> dict[str, Any]:
        """Return counters and merged metric states for a checkpoint. A collective call."""
        self._speed.settle()
        # after it, the syncs before it have been judged too
        metrics = self.families.collection.state_dict(self._ranks.participation())
        return {
            "step_number": self.step_number,
            "cadences": {name: every.state_dict() for name, every in self._cadences.items()},
            "metrics": metrics,
            "memories": self.families.memories(),
            "alerts": self.alert_book.state_dict(),
            "published": self._publisher.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, also at another world size."""
        step = int(state["step_number"])
        if step < self._first:
            raise ConfigError(
                f"the checkpoint goes on at step {step}, but run {self.run_name!r} was opened at step "
                f"{self._first}: make the monitor with resume=True and start_step={step}, so that what was "
                "written at later steps is replaced"
            )
        self.step_number = self._ranks.steps_done = step
        for name, saved in state["cadences"].items():
            self._cadences[name].load_state_dict(saved)
        self.alert_book.load_state_dict(state["alerts"])
        self._publisher.load_state_dict(state["published"])
        self.families.restore(state["metrics"]["metrics"], state["metrics"]["syncs"], state["memories"])

    # -- inside ----------------------------------------------------------------------------------------

    def _start_clock(self) -> None:
        if self._last_step_end is None:
            self._last_step_end = time.perf_counter()

    def _is_due(self, family: str, step: int) -> bool:
        every = self._cadences.get(family)
        if every is None:
            raise ConfigError(f"expected a cadence family of {list(self._cadences)}, got {family!r}")
        return every.is_due(step)

    def _observe_in_time(self, update: Callable[[], None]) -> None:
        """Run an update outside `step`, and count its time as the monitor's own."""
        begun = time.perf_counter()
        self._observe(update)
        self._own_seconds += time.perf_counter() - begun

    def _observe(self, update: Callable[[], None]) -> None:
        """Run an update. On many ranks a failure waits for the next sync, where every rank raises it."""
        try:
            update()
        except Exception:
            failed = [metric for metric in self.families.collection.values() if metric.failure]
            if failed and self.context.world_size > 1:
                return
            for metric in failed:
                metric.failure = None  # raised here and now: there is nobody else to tell
            raise

    def _observe_step(self, samples: int, losses: Any, count: Any, tokens: int, now: float) -> None:
        start = self._last_step_end
        self._speed.step(samples, tokens, 0.0 if start is None else now - start, self._own_seconds)
        self._last_step_end, self._own_seconds = now, 0.0
        if self._is_due("scalars", self.step_number):
            self.families.learning_rate(self.optimizers).update()
        if losses is not None:
            named = losses if isinstance(losses, Mapping) else {"loss": losses}
            counts = samples if count is None else count
            self.families.loss(named).update(named, counts)
            total = _total_count(counts)
            self.families.epoch_loss().update(named["loss"], total)
            self.families.stability().update(named["loss"], total, self.step_number)

    def _observe_figures(self, images: Tensor, shown: Mapping[str, Any], more: Mapping[str, Any]) -> None:
        from hjepa_dist_metrics.monitor.observers.run_figures import observed

        seen = observed(images, **shown, **more)
        self.families.figures(seen, self.config.figures).update(seen)

    def _log(self, names: list[str], request: LogRequest, last: bool = False) -> None:
        """Sync the metrics and publish them: on the sync's thread, except inline or at the run's end."""
        if self.context.is_member:
            self._handle = self._ranks.log(names, request, last=last)
            if last or self.config.sync == "inline":
                self._handle.result()
                self._handle = None
                self._decide_stop()
        self._logged(names)

    def _publish(self, request: LogRequest, result: UnevenResult) -> None:
        values = result.values(apply_formulas)
        self._publisher.publish(request.step, values, self.families.collection.last_sync)

    def _followed(self, request: LogRequest, result: UnevenResult) -> None:
        """Do after a sync in which this rank followed the others what they do."""
        for family in request.due:
            if family in self._cadences:
                self._cadences[family].due(request.step)
        self._logged(list(result.metrics))
        self._decide_stop()

    def _logged(self, names: Sequence[str]) -> None:
        for name in names:
            metric = self.families.collection[name]
            metric.touched = False
            if not metric.persistent:
                metric.reset()


def _total_count(count: Any) -> Any:
    """Return the count behind the total loss: the whole, or the sum over levels."""
    if not isinstance(count, Mapping):
        return count
    return count["loss"] if "loss" in count else sum(count.values())
