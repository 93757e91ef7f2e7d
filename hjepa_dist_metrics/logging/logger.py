"""MetricsLogger: a few verbs that write to every output, on every rank alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from typing_extensions import Self

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.logging.arguments import as_setting, as_tensor, check_edges, configure, raised_once
from hjepa_dist_metrics.logging.embeddings import check_points, to_embedding, to_labels
from hjepa_dist_metrics.logging.graph import trace_graph
from hjepa_dist_metrics.logging.histograms import TensorHistograms
from hjepa_dist_metrics.logging.host_copy import hold, scalars, size_of, take_numbers, whole
from hjepa_dist_metrics.logging.images import (
    check_frames,
    figure_pixels,
    image_layout,
    is_figure,
    to_frames,
    to_grid,
    to_pixels,
)
from hjepa_dist_metrics.logging.output import agree_on_run, open_output
from hjepa_dist_metrics.logging.parameters import named_parameters
from hjepa_dist_metrics.logging.summary_writer import SummaryWriterNames
from hjepa_dist_metrics.logging.tags import PlainTags, StepCounter, flatten, join, numbers
from hjepa_dist_metrics.metrics import Memory, MetricCollection, NamedMeans
from hjepa_dist_metrics.metrics.named_means import weights_of
from hjepa_dist_metrics.parallel import ProcessContext
from hjepa_dist_metrics.sinks import Sink
from hjepa_dist_metrics.sinks.lanes.entry import SCALAR_BYTES
from hjepa_dist_metrics.values import Image, Scalar, Text, Value, Video

Values = Mapping[str, Value]


class MetricsLogger(SummaryWriterNames, AbstractContextManager["MetricsLogger"]):
    """Write a run's values to TensorBoard, JSON lines and Weights & Biases, from a thread.

    Make it, and call it, on every rank alike: only the main process has files. What `log_metrics` and the
    other `log_` methods get is written as it is, so give them what is true of the whole job; numbers that
    differ between ranks go through `accumulate_metrics`, which averages them exactly.

    `config` is a `LoggingConfig`, a mapping with its keys, or a run's configuration with a section `logging`;
    `experiment_name` and `log_dir` win over it. A second run of a name gets the suffix `-2`. With `resume`
    the run goes on in the same files: from `start_step`, where what was written at that step and later is
    replaced, or by default behind the last step. Making the object is a collective call.

    A call without `step` belongs to the current step, the latest so far; where one of its tags has a value
    there already, it begins the next one. `sinks` are outputs of your own, each a function without arguments
    that is called on the main process only. An output that fails is reported once and left out (`failures`).
    """

    def __init__(
        self,
        experiment_name: str | None = None,
        log_dir: str | Path | None = None,
        config: Any = None,
        use_tensorboard: bool = True,
        use_wandb: bool = False,
        *,
        resume: bool = False,
        start_step: int | None = None,
        context: ProcessContext | None = None,
        sinks: Iterable[Callable[[], Sink]] = (),
    ) -> None:
        self.config = configure(config, experiment_name, log_dir, use_tensorboard, use_wandb)
        self.context = context or ProcessContext.current()
        self.run_name, first = agree_on_run(self.config, self.context, resume, start_step)
        self._output = open_output(self.config, self.context, self.run_name, first, more=sinks)
        self._steps, self._plain_tags = StepCounter(first), PlainTags()
        self._memory: MetricCollection | None = None
        self._means = NamedMeans()
        self._collection = MetricCollection(
            {"accumulated": self._means}, self.context, self.config.sync_timeout, f"logger of {self.run_name}"
        )

    # -- numbers ---------------------------------------------------------------------------------------

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None, prefix: str = "") -> None:
        """Write numbers at `step`, by name under `prefix`; nested dictionaries give `outer/inner` tags.

        A number is a Python or NumPy one, or a tensor or array of one element, of any dtype and device.
        """
        plain = self._plain_tags.of(metrics, prefix)
        if plain is not None:
            at = self._steps.resolve(step, plain)
            if plain and self.context.is_main:
                kept = dict(metrics)
                self._output.write_later(at, lambda: scalars(plain, kept.values()), SCALAR_BYTES * len(kept))
            return
        found = {tag: whole(v) if isinstance(v, Tensor) else v for tag, v in numbers(metrics, prefix).items()}
        at = self._steps.resolve(step, found)
        if found and self.context.is_main:
            self._output.write_later(at, take_numbers(found), SCALAR_BYTES * len(found))

    def accumulate_metrics(self, metrics: Mapping[str, Any], weight: Any = 1) -> None:
        """Add numbers of this rank to the running means; local, and without a wait for the device.

        `weight` is how many samples each number is a mean over, one for all or a mapping with one for each
        name. Nothing of the autograd graph is kept. Ranks may call it any number of times.
        """
        found = numbers(metrics)
        weights = weights_of(found, weight)
        numbers({f"weight of {name}": value for name, value in weights.items()})
        self._means.update(
            found, weights
        )  # nothing of this can be wrong any more: an error fails the next log

    def log_accumulated_metrics(
        self, step: int | None = None, prefix: str = "", reset: bool = True
    ) -> dict[str, float]:
        """Write the means over all batches of all ranks, and return them: the same on every rank.

        A mean is sum(weight * value) / sum(weight). A collective call. `reset` starts the means anew. Where
        adding numbers failed on a rank, every rank raises `DesyncError` once, and the numbers wait.
        """
        with raised_once(self._collection):
            found = self._collection.compute()
        means = {join(prefix, name): float(value) for name, value in found.items()}
        if reset:
            self._means.reset()
        self._write(step, {tag: Scalar(value) for tag, value in means.items()})
        return means

    def log_system_metrics(self, step: int | None = None) -> None:
        """Write every rank's GPU memory and utilisation, and the job's CPU use and memory: see `Memory`.

        A collective call.
        """
        if self._memory is None:
            self._memory = MetricCollection(
                {"memory": Memory(self.context.device)}, self.context, self.config.sync_timeout
            )
        with raised_once(self._memory):
            self._memory["memory"].update()
            found = self._memory.compute()
        self._write(step, found)

    # -- distributions ---------------------------------------------------------------------------------

    def log_histogram(
        self, name: str, values: Any, step: int | None = None, edges: Sequence[float] | None = None
    ) -> None:
        """Write the distribution of a tensor's or array's elements; NaN and infinities are counted apart.

        Without `edges` the bins are fixed for good: 10 a decade of magnitude, on both sides of zero.
        """
        self._log_histograms({name: as_tensor(name, values)}, step, edges)

    def log_model_gradients(self, model: nn.Module, step: int | None = None) -> None:
        """Write a histogram of every parameter's gradient, `gradients/{name}`; after the backward pass.

        With sharded parameters a collective call, and every rank must have the same gradients.
        """
        gradients = {name: p.grad for name, p in named_parameters(model) if p.grad is not None}
        self._log_parameters("gradients", gradients, step)

    def log_model_weights(self, model: nn.Module, step: int | None = None) -> None:
        """Write a histogram of every parameter, `weights/{name}`; with sharded ones a collective call."""
        self._log_parameters("weights", dict(named_parameters(model)), step)

    # -- pictures --------------------------------------------------------------------------------------

    def log_image(
        self, name: str, image: Any, step: int | None = None, dataformats: str | None = None
    ) -> None:
        """Write a picture: [H, W], [C, H, W] or [H, W, C], a PIL image or a matplotlib figure.

        Numbers within [0, 1], bytes and booleans are shown as they are, other floats are stretched from
        minimum to maximum. `dataformats`, "CHW" or "HWC", decides where both orders fit.
        """
        if is_figure(image):
            self.log_figure(name, image, step)
            return
        layout = image_layout(image, dataformats)
        self._write_taken(name, step, image, lambda held: Image(to_pixels(held, layout)))

    def log_images(self, name: str, images: Any, step: int | None = None) -> None:
        """Write several pictures, a sequence or [B, C, H, W], as one grid."""
        if len(images) == 0:
            raise ConfigError(f"log_images({name!r}) needs at least one image, got none")
        for image in images:
            image_layout(image)
        self._write_taken(name, step, images, lambda held: Image(to_grid(held)))

    def log_figure(self, name: str, figure: Any, step: int | None = None) -> None:
        """Draw a matplotlib figure and write it as a picture; the figure stays open."""
        at = self._steps.resolve(step, [name])
        if self.context.is_main:
            self._output.write(at, {name: Image(figure_pixels(figure))})

    def log_video(
        self,
        name: str,
        frames: Any,
        step: int | None = None,
        fps: float = 4.0,
        grid: Sequence[int] | None = None,
    ) -> None:
        """Write a moving picture, shown in TensorBoard's images (an animated PNG).

        `frames` is [T, H, W], [T, C, H, W], [T, H, W, C] or, side by side, [N, T, C, H, W]. Masks of patches
        are [T, N] with `grid` = (rows, columns). Small frames are enlarged.
        """
        check_frames(frames, grid)
        if not fps > 0:
            raise ConfigError(f"fps of {name!r} must be more than 0, got {fps!r}")
        self._write_taken(name, step, frames, lambda held: Video(to_frames(held, grid), fps))

    # -- text, embeddings, the run itself ----------------------------------------------------------------

    def log_text(self, name: str, text: str, step: int | None = None) -> None:
        """Write Markdown text."""
        self._write(step, {name: Text(str(text))})

    def log_embedding(
        self,
        name: str,
        vectors: Any,
        labels: Iterable[Any] | None = None,
        images: Any = None,
        step: int | None = None,
    ) -> None:
        """Write points [N, D] for TensorBoard's projector, with a label and a picture a point if given."""
        texts = to_labels(labels)
        check_points(name, vectors, texts, images)
        pictures = [] if images is None else list(images)
        self._write_taken(
            name, step, [vectors, *pictures], lambda held: to_embedding(held[0], texts, held[1:])
        )

    def log_hparams(
        self, hparams: Mapping[str, Any], metrics: Mapping[str, Any] | Sequence[str] = ()
    ) -> None:
        """Add the run to the table that compares runs: its settings, and the tags to compare by.

        Nested `hparams` get dotted names. Where `metrics` is a mapping, its numbers are written as well.
        """
        if isinstance(metrics, Mapping):
            self.log_metrics(metrics)
            metrics = list(flatten(metrics))
        settings = {key: as_setting(value) for key, value in flatten(hparams, separator=".").items()}
        self._output.write_hparams(settings, metrics)

    def log_graph(self, model: nn.Module, inputs: Any) -> None:
        """Write the model's graph on `inputs`, a tensor or a tuple of arguments; the model stays as it is.

        Every rank traces, for a sharded model's forward pass is collective.
        """
        self._write(None, {"graph": trace_graph(model, inputs)})

    # -- life --------------------------------------------------------------------------------------------

    @property
    def failures(self) -> list[str]:
        """Return what was reported about outputs that failed."""
        return list(self._output.failures)

    def flush(self) -> None:
        """Make everything logged so far readable by other processes: before a checkpoint, for instance."""
        self._output.flush()

    def finish(self, success: bool = True) -> None:
        """Write everything out, record how the run ended, and close; a second call does nothing."""
        self._output.write_status(success)
        self._output.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the step and the running means for a checkpoint. A collective call."""
        with raised_once(self._collection):
            means = self._collection.state_dict()
        return {"step": self._steps.current, "means": means}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, also at another world size."""
        self._steps = StepCounter(max(int(state["step"]), self._steps.current))
        self._collection.load_state_dict(state["means"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(success=error is None)

    def close(self) -> None:
        """Finish a run that went well."""
        self.finish()

    # -- inside ------------------------------------------------------------------------------------------

    def _write(self, step: int | None, values: Values) -> None:
        at = self._steps.resolve(step, values)
        if values:
            self._output.write(at, values)

    def _write_taken(self, name: str, step: int | None, source: Any, make: Callable[[Any], Value]) -> None:
        """Take what `source` holds now and write `make` of it, both on the main process only."""
        at = self._steps.resolve(step, [name])
        if self.context.is_main:
            taken = hold(source)
            self._output.write_later(at, lambda: {name: make(taken())}, size_of(source))

    def _log_parameters(self, group: str, tensors: Mapping[str, Tensor], step: int | None) -> None:
        self._log_histograms({join(group, name): whole(tensor) for name, tensor in tensors.items()}, step)

    def _log_histograms(
        self, tensors: Mapping[str, Tensor], step: int | None, edges: Sequence[float] | None = None
    ) -> None:
        limits = None if edges is None else check_edges(edges)
        at = self._steps.resolve(step, tensors)
        if tensors and self.context.is_main:
            size = sum(map(size_of, tensors.values()))
            self._output.write_later(at, TensorHistograms(tensors, limits).values, size)
