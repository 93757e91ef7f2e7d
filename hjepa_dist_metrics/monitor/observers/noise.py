"""How a monitored loop shows the two batch sizes from which the gradient's noise is estimated."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics import GradientNoise
from hjepa_dist_metrics.monitor.observer import Observer, Scope
from hjepa_dist_metrics.parallel.sharding.gradient_hooks import CommHook

logger = logging.getLogger(__name__)


class Noise(Observer):
    """Feed `GradientNoise` from the backward passes of the steps that log scalars, once it is started.

    Where gradients are averaged over ranks, a rank's batch is the small one and the job's the large one;
    accumulate with synchronisation off but for the last micro-step, as `no_sync` does. On one process the
    first micro-batch is the small one, of equal ones whose losses are divided by their number; a step without
    accumulation shows one batch size only. Both norms are read after the backward, before a GradScaler's
    `unscale_`, so that a scale cancels out.
    """

    takes = ("samples",)
    family = None

    def __init__(self, start: bool = False) -> None:
        self._starts = start
        self._noise: GradientNoise | None = None
        self._small: Tensor | None = None
        self._large: Tensor | None = None
        self._parts = 0  # backward passes that changed the gradients: micro-batches, or reductions
        self._warned = False

    def attach(self, scope: Scope) -> None:
        """Begin to observe a run, at once where the configuration says so."""
        super().attach(scope)
        if self._starts:
            self.start()

    def start(self, model: nn.Module | None = None, hook: CommHook | None = None, state: Any = None) -> None:
        """Estimate the gradient's noise from now on; see `TrainingMonitor.watch_gradient_noise`."""
        if self._noise is not None:
            raise ConfigError("the gradient's noise is watched already: by the config, or by hand")
        watched = model or self.scope.model
        layout = self.scope.layout
        make = partial(GradientNoise, watched, hook=hook, hook_state=state, layout=layout)
        noise = self._noise = self.scope.metric("gradient_noise", GradientNoise, make)
        local = noise.listen() if self.scope.context.world_size > 1 else None
        self._local = local if noise.ranks > 1 else None

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Measure the backward in the body, if the coming step logs."""
        if self._noise is None or not self.scope.is_due("scalars"):
            yield
            return
        noise = self._noise
        if self._local is None:
            yield
        else:
            with self._local.looking():
                yield
        self.scope.run(lambda: self._read(noise))

    def _read(self, noise: GradientNoise) -> None:
        if self._local is not None:
            seen = noise.taken(self._local)
            if seen is None:  # no_sync: the gradients wait for the last micro-step
                return
            self._small = seen
        self._parts += 1
        squares = noise.squares()
        if self._local is None and self._parts == 1:
            self._small = squares
        self._large = squares

    def observe(self, samples: Any) -> None:
        """End a step of `samples` samples on this rank, all micro-batches together."""
        if self._noise is None:
            return
        noise = self._noise
        small, large, parts = self._small, self._large, self._parts
        self._small, self._large, self._parts = None, None, 0
        if small is None or large is None or samples <= 0:
            return
        if self._local is not None and parts == 1:
            noise.update(small, samples, large, samples * noise.ranks)
        elif self._local is None and parts > 1:
            noise.update(small * parts**2, samples / parts, large, samples)
        elif self._local is not None and not self._warned:
            self._warned = True
            logger.warning(
                "gradient noise is not measured: %d reductions in one step; accumulate with synchronisation "
                "off (no_sync, set_requires_gradient_sync) but for the last micro-step",
                parts,
            )
