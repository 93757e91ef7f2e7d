"""TrainingMonitor: observe the training loop, sync when it is due, write what is true of the whole job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Self

from hjepa_dist_metrics.metrics import DistributedMetric
from hjepa_dist_metrics.monitor.facade import DeprecatedNames, RunReadings
from hjepa_dist_metrics.monitor.health.health_log import OnAlert
from hjepa_dist_metrics.monitor.health.judge import Rule
from hjepa_dist_metrics.monitor.loop import LoopHooks
from hjepa_dist_metrics.monitor.observer import Observer
from hjepa_dist_metrics.monitor.observers.probing.evaluation import Batch
from hjepa_dist_metrics.monitor.observers.probing.watched_features import WatchFeatures
from hjepa_dist_metrics.monitor.observers.representations import LevelMasks, Levels, StreamMasks, Streams
from hjepa_dist_metrics.monitor.observers.teacher import Encoders
from hjepa_dist_metrics.monitor.run import MonitoredRun, RunOptions
from hjepa_dist_metrics.monitor.schedule import EPOCH
from hjepa_dist_metrics.parallel import ParallelLayout, ProcessContext
from hjepa_dist_metrics.settings.schema import from_mapping
from hjepa_dist_metrics.sinks import HParam
from hjepa_dist_metrics.values import Scalar, Value


class TrainingMonitor(LoopHooks, RunReadings, DeprecatedNames):
    """Watch a training loop, on every rank alike; the main process writes.

    `config` is a `LoggingConfig`, a mapping with its keys, or a whole run's configuration with a section
    `logging`. `step` 0 is the first optimizer step. With `resume` the run goes on in the same files: from
    `start_step`, where what was written at that step and later is replaced, or by default behind the last
    step. Making the object is a collective call. `level_weights` are the objective's weights of its
    hierarchy levels. `total_steps` is the number of the run's steps, where it is known: the last one logs
    every family, figures among them. `hparams` are settings by name, for TensorBoard's table that compares
    runs. `encoders` are the context and the target encoder, where they are not the model's attributes
    `context_encoder` and `target_encoder`. With several optimizers, a list of them, parameter groups are
    numbered through, or go by their "name". `on_alert` is called with each alert that begins, on every rank,
    at times on the thread that runs the syncs: it may not wait for one, as `state_dict` does. `layout`
    declares pipeline stages, experts, and ranks that see the same samples: with it, all ranks call everything
    alike, a rank hands over the losses and features that it has, and samples count once.
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
        total_steps: int | None = None,
        resume: bool = False,
        hparams: Mapping[str, HParam] | None = None,
        encoders: Encoders | None = None,
        on_alert: OnAlert | None = None,
        layout: ParallelLayout | None = None,
    ) -> None:
        self.model, self.config = model, from_mapping(config)
        self.context = context or ProcessContext.current()
        options = RunOptions(
            self.context,
            None if level_weights is None else [float(weight) for weight in level_weights],
            start_step,
            steps_per_epoch,
            total_steps,
            resume,
            hparams,
            encoders,
            on_alert,
            layout,
        )
        self.run = MonitoredRun(model, optimizer, self.config, options)
        self.run_name = self.run.name
        super().__init__(self.run.built_in)

    # -- observing -------------------------------------------------------------------------------------

    def step(
        self,
        samples: int,
        losses: Mapping[str, Any] | Tensor | float | None = None,
        *,
        count: Any = None,
        tokens: int = 0,
        features: Streams | None = None,
        labels: Tensor | None = None,
        valid: StreamMasks = None,
        ids: Tensor | None = None,
        context_features: Tensor | None = None,
        context_valid: Tensor | None = None,
        predictions: Levels | None = None,
        targets: Levels | None = None,
        prediction_valid: LevelMasks = None,
        mask: Tensor | None = None,
        momentum: float | None = None,
        momentum_target: float = 1.0,
        scalars: Mapping[str, Any] | None = None,
        images: Tensor | None = None,
        blocks: Tensor | None = None,
        **more: Any,
    ) -> None:
        """Record one optimizer step of this rank, and sync and write what is due.

        `samples` is this rank's number of samples; `losses` are means over `count` samples or tokens of this
        rank (`samples` by default): a mapping with "loss", "loss_h0", ..., or the loss alone.

        On steps that log representations: `features` are one stream [N, D] or [B, N, D], several by name, or
        a list over the levels of a hierarchy, with `valid` masks in the same form; `context_features` are the
        context encoder's; `predictions` and `targets` are lists over levels, or one tensor each where there
        is one level, `prediction_valid` the tokens that count; `ids` are the samples' global numbers, as in
        `Collapse.update`. `labels` [B], or [B, N] of tokens, make a linear and a kNN probe of each stream, of
        the finest level and of the context, on the steps of `due("probes")`; -1 means that a sample has none.
        On steps that log figures: `images` [B, C, H, W] are what mask, predictions and
        targets are drawn on, `blocks` int [B, K, 4] the masks' rectangles (top, left, height, width in
        patches; height 0 for none).

        On all steps: `mask` bool [B, N] or [B, rows, columns], True = masked, one a sample, under gradient
        accumulation those of all micro-batches or of one; `momentum`, of the target encoder's update in this
        step, and `momentum_target`, where its schedule ends; `scalars` are numbers that are the same on every
        rank, by tag; `more` is what observers of your own take, `views` [B, V, D] with `views_valid` bool
        [B, V], embeddings of augmented views of the samples, `context_mask` and `target_mask` in the form of
        `mask`, the patches that the context encoder is given and those that are predicted (without them the
        unmasked and the masked ones), and `router_logits` [..., experts] of mixture layers, one, by name or
        in order, with `experts_per_token` (1) or `expert_choices`, int [..., k]. Raises the errors of syncs:
        `DesyncError` where ranks disagree.
        """
        given = locals() | more
        del given["self"], given["more"]
        self.run.step(given)

    def due(self, family: str) -> bool:
        """Return whether the coming `step` logs this family, so that costly inputs are made only then.

        For "probes": whether it uses labelled features, which are taken on about 32 steps between two logs.
        """
        if family == "probes":
            return self.run.built_in.probes.is_due
        return self.run.schedule.is_due(family)

    def watch_features(self, watch: WatchFeatures, model: nn.Module | None = None) -> None:
        """Measure what modules put out as features, on the steps that use features.

        `watch` is a module's name, whose features are the run's only stream; or several, whose names are the
        streams'; or a mapping of streams to modules: `{"encoder": "blocks.11"}`. Names are those of the
        monitor's model without its wrappers, or of another `model`. Of several forward passes of a step, as
        under gradient accumulation, the outputs are put together in their order. ConfigError, with near
        names, for a module that does not exist. See `WatchedFeatures` for what a module may put out.
        """
        self.run.built_in.watched.watch(watch, model)

    def end_epoch(self) -> None:
        """Sync and write what is logged once an epoch: `train_epoch/loss`. A collective call.

        Ranks that come early go on to sync at the steps at which the others log, with nothing to add, until
        all have come; then all go on at the same step.
        """
        self.run.cycle.end_epoch()

    def add_observer(self, observer: Observer) -> None:
        """Let an observer of your own look at each step; its rules are judged like the built-in ones."""
        self.run.add_observer(observer)

    def add_metric(self, name: str, metric: DistributedMetric, family: str = "scalars") -> None:
        """Sync and write a metric of your own, at the cadence of `family`; its `update` is yours to call.

        The family "epoch" is what `end_epoch` logs.
        """
        if family != EPOCH:
            self.run.schedule.require_family(family)
        self.run.registry.add_users(name, metric, family)

    def add_rule(self, name: str, rule: Rule) -> None:
        """Watch the merged values by a rule of your own; it raises alerts as the built-in ones do."""
        self.run.health_log.judge.add(name, rule)

    def add_alias(self, names: Mapping[str, str]) -> None:
        """Write numbers under second tags too: `names` maps a tag to its other one."""
        self.run.publisher.add_alias(names)

    def reset_loss_history(self) -> None:
        """Judge no loss by earlier ones: it has another meaning from the coming step on."""
        self.run.reset_losses()

    # -- writing and reading ---------------------------------------------------------------------------

    def compute(self, name: str) -> dict[str, Value]:
        """Return what a metric has seen since its last log, on all ranks; nothing is written.

        A collective call.
        """
        return dict(self.run.collection.compute(names=[name]))

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Write values that are the job's already, a probe's accuracy for instance: numbers or values by tag.

        They are written at the last finished step by default, and the judge sees them. Every rank calls
        this with the same values.
        """
        self.run.log(values, step)

    def evaluate(
        self, batches: Iterable[Batch], prefix: str = "val", step: int | None = None
    ) -> dict[str, float]:
        """Score held-out batches with the probes of the run; write and return `probe/{prefix}_{stream}_...`.

        `batches` are this rank's, any number of pairs (features, labels), or of mappings with the arguments
        of `step` "features", "labels", "valid", "context_features" and "context_valid". Where modules are
        watched, features may be left out: they are what the modules have put out since the last batch.

            monitor.evaluate((encode(images), labels) for images, labels in loader)

        The probes learn from the queue as it is now, on all ranks. A collective call.
        """
        values = self.run.evaluate(batches, prefix, step)
        return {tag: float(value.value) for tag, value in values.items() if isinstance(value, Scalar)}

    # -- life --------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Wait for the syncs under way and make everything readable: before a checkpoint, for instance."""
        self.run.flush()

    def finish(self) -> None:
        """Log the steps since the last log, together with the ranks that are still training.

        A collective call, made by `close`. A rank that ran out of batches goes on to sync at the steps at
        which the others log, with nothing to add, for as long as these train, until all have finished.
        """
        self.run.finish()

    def close(self) -> None:
        """Finish, and close the files. Called at the end of the `with` block.

        Where the last `step` raised, there is nothing to finish: its error is not raised again.
        """
        try:
            if not self.run.failed:
                self.finish()
        finally:
            self.run.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        succeeded = False
        try:
            if error is None:
                self.finish()
                succeeded = True
        finally:
            self.run.sink.write_status(succeeded)
            self.run.release()

    def state_dict(self) -> dict[str, Any]:
        """Return counters and merged metric states for a checkpoint. A collective call."""
        return self.run.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, also at another world size."""
        self.run.load_state_dict(state)
