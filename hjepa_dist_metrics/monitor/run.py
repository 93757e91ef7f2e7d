"""The parts of a monitored run, put together: schedule, metrics, observers, outputs."""

from __future__ import annotations

import atexit
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

from hjepa_dist_metrics.catalog import how_to_read
from hjepa_dist_metrics.catalog.dashboards import DASHBOARDS, REQUESTED_DASHBOARDS
from hjepa_dist_metrics.catalog.headline import shown_names
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.logging.output import agree_on_run, open_output
from hjepa_dist_metrics.logging.profile import profile_of
from hjepa_dist_metrics.metrics import MetricCollection
from hjepa_dist_metrics.metrics.base import as_value
from hjepa_dist_metrics.metrics.optimization.tracked_parameters import optimizer_list
from hjepa_dist_metrics.monitor.health.health_log import HealthLog, OnAlert
from hjepa_dist_metrics.monitor.log_cycle import LogCycle
from hjepa_dist_metrics.monitor.metric_registry import MetricRegistry
from hjepa_dist_metrics.monitor.observer import Observer, Scope
from hjepa_dist_metrics.monitor.observer_list import ObserverList
from hjepa_dist_metrics.monitor.observers import BuiltIn
from hjepa_dist_metrics.monitor.observers.probing.evaluation import Batch, evaluate
from hjepa_dist_metrics.monitor.observers.teacher import Encoders
from hjepa_dist_metrics.monitor.publishing import Explain, Publisher
from hjepa_dist_metrics.monitor.sample_share import own_share
from hjepa_dist_metrics.monitor.schedule import Schedule
from hjepa_dist_metrics.monitor.validation import step_arguments
from hjepa_dist_metrics.parallel import ParallelLayout, ProcessContext
from hjepa_dist_metrics.parallel.environment import describe_environment
from hjepa_dist_metrics.settings.schema import LoggingConfig
from hjepa_dist_metrics.sinks import HParam
from hjepa_dist_metrics.sinks.background import SIGNAL_FLUSH_SECONDS
from hjepa_dist_metrics.sinks.signals import SignalFlush
from hjepa_dist_metrics.sync import drain_syncs
from hjepa_dist_metrics.values import Scalar, Value

# What TensorBoard's table of runs shows beside their settings.
COMPARED = ("loss/total", "collapse/effective_rank", "val/knn_accuracy", "performance/samples_per_second")
# The format of checkpoints; it changes with what they hold.
FORMAT = 3


@dataclass(frozen=True)
class RunOptions:
    """How a run is opened; see `TrainingMonitor`."""

    context: ProcessContext
    level_weights: Sequence[float] | None = None
    start_step: int | None = None
    steps_per_epoch: int | None = None
    total_steps: int | None = None
    resume: bool = False
    hparams: Mapping[str, HParam] | None = None
    encoders: Encoders | None = None
    on_alert: OnAlert | None = None
    layout: ParallelLayout | None = None


class MonitoredRun:
    """Hold the parts of a run and end them in the right order. `failed` says that the last step raised."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        config: LoggingConfig,
        options: RunOptions,
    ) -> None:
        self.options, context = options, options.context
        self.failed = False
        self.name, self.first_step = agree_on_run(config, context, options.resume, options.start_step)
        cadences = config.cadences(options.steps_per_epoch)
        self.schedule = Schedule(cadences.every(), self.first_step, options.total_steps)
        self.collection = MetricCollection(
            context=context, sync_timeout=config.sync_timeout, name=f"monitor of {self.name}"
        )
        self.registry = MetricRegistry(self.collection)
        self.health_log = HealthLog(config.alerts, context.is_main, options.on_alert)
        listed = optimizer_list(optimizer)
        scope = Scope(
            model,
            listed,
            config,
            self.registry,
            self.schedule,
            options.layout,
            lambda row: self.cycle.gather(row),
        )
        self.observers = ObserverList(scope, self.schedule)
        self.built_in = BuiltIn.of(config, options.level_weights, options.encoders)
        for observer in self.built_in.all:
            self.add_observer(observer)
        levels = None if options.level_weights is None else len(options.level_weights)
        # The judge's numbers must be in one of the files, for the verdict on a finished run.
        everything = config.detail == "full" or not config.jsonl.enabled
        names = partial(shown_names, everything=everything)
        self.sink = open_output(config, context, self.name, self.first_step, levels, names=names)
        self.sink.write_hparams(options.hparams or {}, COMPARED)
        health_log = self.health_log if config.alerts.enabled else None
        self.publisher = Publisher(self.sink, context, health_log, self._notes(config))
        self.cycle = LogCycle(self.registry, self.schedule, self.publisher, config, self.observers.before_log)
        # The last to be registered is the first to be called: before the files close. A signal goes to all
        # ranks, and each is needed for the syncs that all have asked for already.
        atexit.register(self.release)
        self._signals = SignalFlush(lambda: drain_syncs(SIGNAL_FLUSH_SECONDS))

    def _notes(self, config: LoggingConfig) -> Explain:
        """Return what writes the run's notes, once: a run that is resumed has them."""
        if self.options.resume:
            return lambda tags: {}
        default = (*DASHBOARDS, *REQUESTED_DASHBOARDS)
        named = default if config.dashboards == "default" else config.dashboards
        environment = describe_environment(self.options.context)
        return lambda tags: {
            "notes/how_to_read": how_to_read(profile_of(config, tags), tags, named),
            "notes/environment": environment,
        }

    def add_observer(self, observer: Observer) -> None:
        """Let an observer look at each step, and judge by its rules."""
        self.observers.add(observer)
        for name, rule in observer.rules().items():
            self.health_log.judge.add(name, rule)

    def step(self, given: Mapping[str, Any]) -> None:
        """Hand a step's arguments to the observers, and log what is due."""
        self.failed = True  # unless it comes to the end
        timing = self.built_in.timing
        timing.begin_step()
        self.collection.raise_errors()
        given = self.built_in.watched.add_to(given)
        arguments = step_arguments(given, self.observers.arguments)
        self.observers.observe(own_share(arguments, self.options.layout))
        self.cycle.end_step()
        timing.end_step()
        self.failed = False

    def log(self, values: Mapping[str, Any], step: int | None) -> None:
        """Write and judge values that are the job's already."""
        ready = {tag: as_value(value, tag) for tag, value in values.items()}
        self.cycle.settle()
        if isinstance(validation := ready.get("val/loss"), Scalar):
            self.built_in.losses.validate(validation.value)
        self.publisher.write(self.schedule.last_step if step is None else step, ready)
        self.cycle.decide_stop()

    def evaluate(self, batches: Iterable[Batch], prefix: str, step: int | None) -> dict[str, Value]:
        """Score held-out batches with the run's probes, write what they give, and return it."""
        self.cycle.settle()
        watched = self.built_in.watched
        pause = nullcontext() if watched.is_paused else self.built_in.timing.pause()
        with pause, watched.evaluating():
            values = evaluate(self.collection, batches, prefix, watched.take)
        self.log(values, step)
        return values

    def reset_losses(self) -> None:
        """Judge no loss by those of earlier steps."""
        self.cycle.settle()
        self.built_in.losses.forget()
        self.publisher.reset_losses()

    def flush(self) -> None:
        """Wait for the syncs under way and make everything readable."""
        self.collection.close()
        self.publisher.finish_drawing()
        self.sink.flush()

    def finish(self) -> None:
        """Log the steps since the last log, together with the ranks that are still training."""
        self.cycle.finish()
        self.flush()

    def release(self) -> None:
        """Write what is still on its way, which may tell why the run ends, and close the outputs."""
        atexit.unregister(self.release)
        self._signals.restore()
        self.observers.close()
        drain_syncs()
        self.publisher.close()
        self.sink.close()

    def state_dict(self) -> dict[str, Any]:
        """Return counters and merged metric states for a checkpoint. A collective call."""
        observers = self.observers.state_dict()
        metrics = self.cycle.packed_metrics()  # the syncs before it have been judged when it returns
        return {
            "format": FORMAT,
            **self.schedule.state_dict(),
            "metrics": metrics,
            "observers": observers,
            "health": self.health_log.state_dict(),
            "published": self.publisher.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint; ConfigError for one of another format, or of an earlier step."""
        self._require_loadable(state)
        self.schedule.load_state_dict(state)
        self.cycle.resume()
        self.health_log.load_state_dict(state["health"])
        self.publisher.load_state_dict(state["published"])
        self.registry.restore(state["metrics"])
        self.observers.load_state_dict(state["observers"])

    def _require_loadable(self, state: Mapping[str, Any]) -> None:
        if not isinstance(state, Mapping) or state.get("format") != FORMAT:
            saved = state.get("format", "none") if isinstance(state, Mapping) else type(state).__name__
            raise ConfigError(
                f"expected a monitor's checkpoint of format {FORMAT}, got format {saved}: it was written by "
                "another version of hjepa_dist_metrics; go on with the model's checkpoint and a new monitor"
            )
        step = int(state["step_number"])
        if step < self.first_step:
            raise ConfigError(
                f"the checkpoint goes on at step {step}, but run {self.name!r} was opened at step "
                f"{self.first_step}: make the monitor with resume=True and start_step={step}, so that what "
                "was written at later steps is replaced"
            )
