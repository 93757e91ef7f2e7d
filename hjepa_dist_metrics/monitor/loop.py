"""What a training loop calls around the phases of its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

from hjepa_dist_metrics.monitor.observers import BuiltIn
from hjepa_dist_metrics.parallel.sharding.gradient_hooks import CommHook

B = TypeVar("B")


class LoopHooks:
    """Time the phases of a step and look at its gradients: the part of `TrainingMonitor` inside of a step."""

    def __init__(self, observers: BuiltIn) -> None:
        self._timing, self._gradients, self._noise = observers.timing, observers.gradients, observers.noise
        self._batches, self._watched = observers.batches, observers.watched

    def batches(self, loader: Iterable[B]) -> Iterator[B]:
        """Yield the loader's batches and time the wait for each; on the steps up to a log, compare them."""
        self._batches.begin_pass(loader)
        for batch in self._timing.batches(loader):
            with self._timing.own_time():
                self._batches.look(batch)
            yield batch
        self._batches.end_pass()

    def observe_batch(self, batch: Any, epoch: int = 0) -> None:
        """Compare a batch as `batches` does, in a loop that does not go through it: before its forward.

        Of several batches of a step the first counts. Batches of different epochs are not compared.
        """
        with self._timing.own_time():
            self._batches.begin_epoch(epoch)
            self._batches.look(batch)

    def data_loading(self) -> AbstractContextManager[None]:
        """Time the body as waiting for data, in a loop that does not go through `batches`.

        What a `pause` inside of the body takes does not count.
        """
        return self._timing.loading()

    def forward(self) -> AbstractContextManager[None]:
        """Time the body as forward; may be entered once for each micro-step."""
        return self._timing.phase("forward")

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Time the body as backward; on steps that log gradients, read them afterwards.

        Where `clip_grad_norm_` is called they are read there, which is right under a GradScaler too.
        """
        with self._noise.backward(), self._timing.phase("backward"):
            yield
        with self._timing.own_time():
            self._gradients.after_backward()

    def optimizer_step(self) -> AbstractContextManager[None]:
        """Time the body as the optimizer's step."""
        return self._timing.phase("optimizer")

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Keep the body, an evaluation or a checkpoint, out of the training's throughput and features."""
        with self._timing.pause(), self._watched.pausing():
            yield

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Clip the model's gradients by their global norm, keep count, and return the norm before."""
        with self._timing.exchange():
            return self._gradients.clip_(max_norm)

    def clipping(self, max_norm: float | None = None) -> AbstractContextManager[None]:
        """Read the gradients' norm before and after the body, which clips them in a way of its own.

        For loops whose clipping is not the monitor's: Accelerate's, Lightning's, clipping by value. The
        gradients, and so the training, stay as they are without a monitor. Where the body clips the norm of
        all parameters by torch's formula, give its `max_norm`: it is read back on steps that log only.
        """
        return self._gradients.clipping(max_norm)

    def observe_gradients(self) -> None:
        """Read the gradients if the coming `step` logs them: after `unscale_`, in a loop without clipping.

        Before any clipping that is not the monitor's: afterwards the clipped norm would be read.
        """
        self._gradients.read()

    def before_clipping(self, observe: Callable[[], None]) -> None:
        """Call `observe` in every `clip_grad_norm_`, when the gradients are whole and not yet clipped.

        For metrics of your own that read gradients: `monitor.before_clipping(metric.update)`.
        """
        self._gradients.before_clipping(observe)

    def watch_gradient_noise(
        self, model: nn.Module | None = None, *, hook: CommHook | None = None, hook_state: Any = None
    ) -> None:
        """Estimate the gradient noise scale (arXiv 1812.06162) from the `backward` of the steps that log.

        What `logging.gradients.noise: true` does by itself. Here give the wrapped model where the monitor has
        another, and DDP's communication hook of your own instead of registering it. On many ranks the model
        must be in DistributedDataParallel or `fully_shard`; on one process the loop must accumulate.
        """
        self._noise.start(model, hook, hook_state)

    def count_flops(self, step: Callable[[], Any], samples: int, peak_flops: float | None = None) -> float:
        """Run `step`, a forward and backward of `samples` samples, once and count its operations for each.

        From then on `performance/mfu` is written, where the devices' peak is known or given. Every rank must
        call it. The step's gradients are yours to discard.
        """
        return self._timing.count_flops(step, samples, peak_flops)
