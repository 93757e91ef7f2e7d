"""How a monitored loop shows the two batch sizes from which the gradient's noise is told."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from hjepa_dist_metrics.metrics import GradientNoise

logger = logging.getLogger(__name__)

Update = Callable[[], None]


class NoiseWatch:
    """Feed `GradientNoise` from the backward passes of the steps that log scalars.

    Where gradients are averaged over ranks (`many`), a rank's batch is the small one and the job's the large
    one; accumulate with synchronisation off but for the last micro-step, as `no_sync` does. On one process
    the first micro-batch is the small one, of equal ones whose losses are divided by their number; of a step
    without accumulation nothing can be told. Both norms are read after the backward, before a GradScaler's
    `unscale_`, so that a scale cancels out.
    """

    def __init__(
        self, noise: GradientNoise, many: bool, is_due: Callable[[], bool], guard: Callable[[Update], None]
    ) -> None:
        self._noise, self._is_due, self._guard = noise, is_due, guard
        local = noise.listen() if many else None
        self._local = local if noise.ranks > 1 else None
        self._small: Tensor | None = None
        self._large: Tensor | None = None
        self._parts = 0  # backward passes that changed the gradients: micro-batches, or reductions
        self._told = False

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Measure the backward in the body, if the coming step logs."""
        if not self._is_due():
            yield
            return
        if self._local is None:
            yield
        else:
            with self._local.looking():
                yield
        self._guard(self._read)

    def _read(self) -> None:
        if self._local is not None:
            seen = self._local.take()
            if seen is None:  # no_sync: the gradients wait for the last micro-step
                return
            self._small = seen
        self._parts += 1
        squares = self._noise.squares()
        if self._local is None and self._parts == 1:
            self._small = squares
        self._large = squares

    def step(self, samples: int) -> None:
        """End a step of `samples` samples on this rank, all micro-batches together."""
        small, large, parts = self._small, self._large, self._parts
        self._small, self._large, self._parts = None, None, 0
        if small is None or large is None or samples <= 0:
            return
        if self._local is not None and parts == 1:
            self._guard(lambda: self._noise.update(small, samples, large, samples * self._noise.ranks))
        elif self._local is None and parts > 1:
            self._guard(lambda: self._noise.update(small * parts**2, samples / parts, large, samples))
        elif self._local is not None and not self._told:
            self._told = True
            logger.warning(
                "gradient noise is not measured: %d reductions in one step; accumulate with synchronisation "
                "off (no_sync, set_requires_gradient_sync) but for the last micro-step",
                parts,
            )
