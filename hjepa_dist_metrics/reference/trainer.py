"""The training loop that all reference workloads share."""

from __future__ import annotations

import inspect
import logging as logs
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hjepa_dist_metrics import Health, LoggingConfig, ProcessContext, TrainingMonitor
from hjepa_dist_metrics.reference import checkpoint
from hjepa_dist_metrics.reference.schedule import learning_rate
from hjepa_dist_metrics.reference.training import TrainingConfig
from hjepa_dist_metrics.reference.workload import LayoutWorkload, LossWorkload, MicroStep, Workload
from hjepa_dist_metrics.sinks import HParam

logger = logs.getLogger("hjepa_dist_metrics.reference")

_LEAST_BYTES = 1 << 20  # of a checkpoint
# Buffers are constants here: nothing to send before each forward pass. Newer torch renamed the option.
_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
_KEEP_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}

Progress = Callable[[int, int, Mapping[str, float]], None]


@dataclass
class Outcome:
    """Hold what a run ended with: first and last values by tag, the steps done, the verdict, what failed."""

    first: dict[str, float]
    latest: dict[str, float]
    steps: int
    run_name: str
    health: Health
    alerts: list[str]
    failures: list[str]
    stopped_by: str | None = None


class Trainer:
    """Train a workload on this process's share of every batch."""

    def __init__(
        self,
        workload: Workload,
        training: TrainingConfig,
        logging: LoggingConfig,
        context: ProcessContext,
        hparams: Mapping[str, HParam] | None = None,
    ) -> None:
        self.workload, self.training, self.logging, self.context = workload, training, logging, context
        self.hparams = hparams
        self.total_steps = training.epochs * workload.steps_per_epoch
        self.last_step = min(self.total_steps, training.max_steps or self.total_steps)
        self.optimizer = torch.optim.AdamW(workload.parameter_groups(), lr=training.learning_rate)
        self.start_step = self.steps_done = 0
        self.run_name = logging.experiment_name
        self.failures: list[str] = []
        self._saved: dict[str, Any] | None = None
        if training.resume and training.checkpoint_dir:
            self._restore(checkpoint.folder(training.checkpoint_dir, logging.experiment_name))
        elif training.checkpoint_dir:
            checkpoint.require_unused(training.checkpoint_dir)
        self.model = self._wrap(workload.model)

    def run(self, progress: Progress = lambda step, total, latest: None) -> Outcome:
        """Train from the start step to the last one; `progress` is called after every step."""
        with TrainingMonitor(
            self.model,
            self.optimizer,
            self.logging,
            context=self.context,
            level_weights=self.workload.level_weights,
            start_step=self.start_step,
            steps_per_epoch=self.workload.steps_per_epoch,
            total_steps=self.last_step,
            resume=self._saved is not None,
            hparams=self.hparams,
            layout=self.workload.layout if isinstance(self.workload, LayoutWorkload) else None,
        ) as monitor:
            self.run_name = monitor.run_name
            self.workload.attach(monitor)
            if self._saved is not None:
                monitor.load_state_dict(self._saved["monitor"])
            else:
                self._evaluate(monitor, 0)
            per_epoch = self.workload.steps_per_epoch
            for epoch in range(self.start_step // per_epoch, self.training.epochs):
                if self._is_over(monitor):
                    break
                self._epoch(monitor, epoch, progress)
            monitor.finish()
            return self._outcome(monitor)

    def _epoch(self, monitor: TrainingMonitor, epoch: int, progress: Progress) -> None:
        per_epoch = self.workload.steps_per_epoch
        batches = iter(monitor.batches(self.workload.batches(epoch, monitor.step_number - epoch * per_epoch)))
        while monitor.step_number < (epoch + 1) * per_epoch and not self._is_over(monitor):
            self._step(monitor, batches, epoch)
            if self._saves_within(epoch, monitor.step_number):
                self._save(monitor)
            self.steps_done = monitor.step_number
            progress(monitor.step_number, self.last_step, monitor.latest)
        monitor.end_epoch()
        over = self._is_over(monitor)
        if over or self._every(epoch, self.training.probe_every_epochs):
            self._evaluate(monitor, monitor.last_step)
        if (
            over
            or self._every(epoch, self.training.checkpoint_every_epochs)
            or self._saves_at(monitor.step_number)
        ):
            self._save(monitor)

    def _is_over(self, monitor: TrainingMonitor) -> bool:
        return monitor.step_number >= self.last_step or monitor.should_stop is not None

    def _step(self, monitor: TrainingMonitor, batches: Iterable[Any], epoch: int) -> None:
        """Take one optimizer step: forward and backward for every micro-batch, clip, step, record."""
        rate = learning_rate(
            monitor.step_number,
            self.total_steps,
            self.training.learning_rate,
            self.training.min_learning_rate,
            self.training.warmup_fraction,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        count = self.training.accumulation_steps
        micro = [self._micro_step(monitor, next(iter(batches)), epoch, i == count - 1) for i in range(count)]
        monitor.clip_grad_norm_(self.training.clip_grad)
        with monitor.optimizer_step():
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        observed = {**micro[-1].observations, **self.workload.after_step(monitor.step_number)}
        monitor.step(
            samples=sum(result.samples for result in micro),
            losses=_mean_losses(micro),
            tokens=sum(result.tokens for result in micro),
            **observed,
        )

    def _micro_step(self, monitor: TrainingMonitor, batch: Any, epoch: int, last: bool) -> MicroStep:
        if isinstance(self.workload, LayoutWorkload):
            return self.workload.micro_step(monitor, batch, epoch)
        assert isinstance(self.workload, LossWorkload)
        with nullcontext() if last else self._no_sync():
            with monitor.forward(), self._autocast():
                result = self.workload.forward(self.model, batch, epoch)
            with monitor.backward():
                assert result.loss is not None
                (result.loss / self.training.accumulation_steps).backward()  # type: ignore[no-untyped-call]
        return result

    def _evaluate(self, monitor: TrainingMonitor, step: int) -> None:
        with monitor.pause():
            monitor.log(self.workload.evaluate(), step)

    def _outcome(self, monitor: TrainingMonitor) -> Outcome:
        return Outcome(
            dict(monitor.first),
            dict(monitor.latest),
            monitor.step_number,
            monitor.run_name,
            monitor.health(),
            [str(alert) for alert in monitor.alerts],
            [*monitor.failures, *self.failures],
            monitor.should_stop,
        )

    def _wrap(self, model: nn.Module) -> nn.Module:
        wrapped = model
        if self.training.compile:
            wrapped = torch.compile(wrapped)  # type: ignore[assignment]
        if self.context.world_size == 1 or isinstance(self.workload, LayoutWorkload):
            return wrapped
        device_ids = [self.context.device.index] if self.context.device.type == "cuda" else None
        return DistributedDataParallel(wrapped, device_ids=device_ids, **_KEEP_BUFFERS)

    def _no_sync(self) -> AbstractContextManager[None]:
        """Keep gradients local until the last micro-step."""
        if isinstance(self.model, DistributedDataParallel):
            context: AbstractContextManager[None] = self.model.no_sync()
            return context
        return nullcontext()

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.context.device.type, torch.bfloat16, enabled=self._bf16())

    def _bf16(self) -> bool:
        """Return whether to run in bf16: as configured, as the launcher says, or where a GPU has it."""
        if self.training.precision != "auto":
            return self.training.precision == "bf16"
        asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "")
        if asked:
            return asked == "bf16"
        return self.context.device.type == "cuda" and torch.cuda.is_bf16_supported()

    @staticmethod
    def _every(epoch: int, epochs: int) -> bool:
        return epochs > 0 and (epoch + 1) % epochs == 0

    def _saves_at(self, step: int) -> bool:
        steps = self.training.checkpoint_every_steps
        return steps is not None and step % steps == 0

    def _saves_within(self, epoch: int, step: int) -> bool:
        """Return whether to save before the epoch ends; its end saves after the epoch's own values."""
        ends = min((epoch + 1) * self.workload.steps_per_epoch, self.last_step)
        return step < ends and self._saves_at(step)

    def _save(self, monitor: TrainingMonitor) -> None:
        if not self.training.checkpoint_dir:
            return
        directory = checkpoint.folder(self.training.checkpoint_dir, monitor.run_name)
        with monitor.pause():
            # on every rank: it merges over them
            state: dict[str, Any] = {"monitor": monitor.state_dict(), "run_name": monitor.run_name}
            monitor.flush()
            if self.context.is_main:
                state["model"] = self.workload.model.state_dict()
                state["optimizer"] = self.optimizer.state_dict()
                self._write_checkpoint(directory, monitor.step_number, state)

    def _write_checkpoint(self, directory: Path, step: int, state: dict[str, Any]) -> None:
        """Save; where the disk is full or gone the run goes on without, which is said once."""
        try:
            checkpoint.save(directory, step, state)
        except (OSError, RuntimeError) as error:  # torch.save raises either
            full = shutil.disk_usage(directory if directory.exists() else ".").free < _LEAST_BYTES
            reason = "the disk is full" if full else " ".join(str(error).split())[:200]
            message = f"no checkpoint of step {step} in {directory}, training goes on: {reason}"
            if not self.failures:
                logger.error(message)
                self.failures.append(message)

    def _restore(self, directory: Path) -> None:
        """Take the newest checkpoint, and go on under its run's name; start anew where there is none."""
        path = checkpoint.newest(directory)
        if path is None:
            return
        self._saved = checkpoint.load(path, self.context.device)
        self.workload.model.load_state_dict(self._saved["model"])
        self.optimizer.load_state_dict(self._saved["optimizer"])
        self.start_step = int(self._saved["monitor"]["step_number"])
        self.logging = replace(self.logging, experiment_name=self._saved["run_name"])


def _mean_losses(micro: list[MicroStep]) -> dict[str, Tensor] | None:
    """Return the micro-steps' losses averaged over their samples; None on a rank without any."""
    total = sum(result.samples for result in micro)
    weighted = [(result.losses, result.samples / total) for result in micro if result.losses is not None]
    if not weighted:
        return None
    names = weighted[0][0]
    return {name: torch.stack([losses[name] * share for losses, share in weighted]).sum() for name in names}
