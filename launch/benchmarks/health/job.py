"""One run: a recipe, perhaps with a failure planted in it, watched by a monitor and by independent facts."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.health.facts import Facts
from benchmarks.health.recipe import Recipe, Step
from hjepa_dist_metrics import ProcessContext, TrainingMonitor

Hook = Callable[..., Any]
Plant = Callable[["Job"], None]


class Job:
    """Train a recipe; at `planted_at` `plant` is called, which turns the recipe's knobs or adds hooks.

    Hooks go by the moment at which they are called: "batch" with a batch, which they may replace, and
    "loss" with the loss to differentiate, likewise; "data" and "forward" in the time that the monitor counts
    for these, "gradients" at the end of the backward pass, when they are averaged over ranks; "step" after
    the optimizer's step.
    """

    def __init__(
        self,
        recipe: Recipe,
        context: ProcessContext,
        plant: Plant | None = None,
        planted_at: int = 0,
        steps: int | None = None,
    ) -> None:
        self.recipe, self.context = recipe, context
        self.plant, self.planted_at = plant, planted_at
        self.steps = recipe.steps if steps is None else steps
        self.hooks: dict[str, list[Hook]] = defaultdict(list)
        self.optimizer_steps = True
        self.step = 0
        self.stops_early = False
        self.trains_alone = False
        self.model = Replica(recipe) if context.world_size == 1 else DistributedDataParallel(Replica(recipe))
        self.random = torch.Generator().manual_seed(99 + recipe.setting.seed)
        self.facts = Facts(recipe)

    def on(self, moment: str, hook: Hook) -> None:
        """Call a hook at each step from now on."""
        self.hooks[moment].append(hook)

    @property
    def since(self) -> int:
        """Return the steps since the failure was planted."""
        return self.step - self.planted_at

    def run(self, config: dict[str, Any]) -> None:
        """Train all steps; `config` is the monitor's."""
        recipe = self.recipe
        if self.plant is not None and self.planted_at == 0:
            self.plant(self)
        with TrainingMonitor(
            recipe.model if self.context.world_size == 1 else self.model,
            recipe.optimizer,
            config,
            context=self.context,
            encoders=recipe.encoders,
            level_weights=recipe.level_weights,
        ) as monitor:
            recipe.attach(monitor)
            for batch in monitor.batches(self._batches()):
                self._train(monitor, batch)
                self.step += 1

    def _batches(self) -> Iterator[Any]:
        """Yield the steps' batches; the failure begins before the batch of its step is made."""
        source = self.recipe.batches()
        for step in range(self.steps):
            if self.plant is not None and step == self.planted_at > 0:
                self.plant(self)
            if self.stops_early:
                return
            batch = next(source)
            for hook in self.hooks["data"]:
                hook()
            for hook in self.hooks["batch"]:
                batch = hook(batch)
            yield batch

    def _train(self, monitor: TrainingMonitor, batch: Any) -> None:
        recipe, begun = self.recipe, time.perf_counter()
        for group in recipe.optimizer.param_groups:
            group["lr"] = recipe.base_rate * recipe.factor(self.step) * group.get("factor", 1.0)
        recipe.logs_features = monitor.due("representations")
        with monitor.forward():
            result = self._forward(batch)
            self._call("forward")
        loss = result.loss
        for hook in self.hooks["loss"]:
            loss = hook(loss)
        with monitor.backward():
            loss.backward()  # type: ignore[no-untyped-call]
            self._call("gradients")
        recipe.logs_features, logged = False, monitor.due("scalars")
        if logged:
            self.facts.before_update(recipe.model)
        if recipe.clip is not None:
            monitor.clip_grad_norm_(recipe.clip)
        with monitor.optimizer_step():
            if self.optimizer_steps:
                recipe.optimizer.step()
        recipe.model.zero_grad(set_to_none=True)
        more = recipe.after_step(self.step)
        self._call("step")
        monitor.step(samples=result.samples, losses=result.losses, **result.observed, **more)
        self.facts.seconds.append(time.perf_counter() - begun)
        if logged:
            with monitor.pause():
                self._broadcast_buffers()
                self.facts.measure(self.step, recipe)
                self._validate(monitor)

    def _validate(self, monitor: TrainingMonitor) -> None:
        """Log what the recipe publishes of a validation, at its own cadence."""
        every = self.recipe.probe_every
        if every is not None and self.step // self.recipe.log_every % every == 0:
            published = self.recipe.validate()
            accuracy = self.facts.series[-1][1].get("knn")
            if accuracy is not None:
                published["val/knn_accuracy"] = accuracy
            monitor.log(published)

    def _forward(self, batch: Any) -> Step:
        """Return the loss of a batch; a rank that the others have left averages with none of them."""
        model: nn.Module = self.model
        if self.trains_alone and isinstance(model, DistributedDataParallel):
            model = model.module
        result: Step = model(batch)
        return result

    def _call(self, moment: str) -> None:
        for hook in self.hooks[moment]:
            hook()

    @torch.no_grad()
    def _broadcast_buffers(self) -> None:
        """Give every rank the first one's buffers, running means for instance: a validation needs them."""
        if self.context.world_size > 1 and not self.trains_alone:
            for buffer in self.recipe.model.buffers():
                dist.broadcast(buffer, 0)


class Replica(nn.Module):
    """A recipe's modules with its forward pass, for DistributedDataParallel."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        for name, child in recipe.model.named_children():
            self.add_module(name, child)
        self.step = recipe.forward

    def forward(self, batch: Any) -> Step:
        """Return the loss of a batch."""
        return self.step(batch)
