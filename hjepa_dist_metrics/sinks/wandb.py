"""Weights & Biases: the same values, in a run of its own (extra `wandb`)."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hjepa_dist_metrics.errors import MissingExtraError
from hjepa_dist_metrics.sinks.base import ForkGuard, HParam
from hjepa_dist_metrics.values import Embedding, Histogram, Image, Scalar, Text, Value, Video

# The axis of every chart: W&B's own step counts calls and refuses to go back, as a resumed run must.
_STEP = "step"
_MOST_BINS = 512


class WandbSink:
    """Send values to one W&B run, its files below `directory`.

    With `mode="offline"` nothing leaves the machine until `wandb sync`. The run's id is kept in
    `<directory>/<name>.id`, so that a resumed run goes on in the same W&B run. Graphs are left
    out. A video becomes a row of pictures, an embedding a table.
    """

    def __init__(
        self,
        directory: str | Path,
        name: str,
        project: str,
        entity: str | None = None,
        tags: Sequence[str] = (),
        mode: Literal["online", "offline"] = "online",
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingExtraError("wandb", "wandb", "Logging to Weights & Biases") from error
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self._wandb: Any = wandb
        self._guard = ForkGuard()
        self.run: Any = wandb.init(
            project=project,
            entity=entity,
            name=name,
            id=self._run_id(name),
            resume="allow",
            tags=list(tags) or None,
            dir=str(self.directory),
            mode=mode,
            settings=wandb.Settings(console="off", x_disable_stats=True, disable_git=True),
        )
        self.run.define_metric("*", step_metric=_STEP)

    def __str__(self) -> str:
        return f"Weights & Biases ({self.directory})"

    def write(self, step: int, values: Mapping[str, Value], wall_time: float | None = None) -> None:
        """Send one step's values; W&B stamps them itself."""
        if self._guard.in_child or self.run is None:
            return
        sent = {tag: entry for tag, value in values.items() if (entry := self._encode(value)) is not None}
        if sent:
            self.run.log({_STEP: int(step), **sent})

    def write_hparams(self, hparams: Mapping[str, HParam], metrics: Sequence[str] = ()) -> None:
        """Make the settings the run's configuration; W&B compares runs by any metric."""
        if self.run is not None and not self._guard.in_child:
            self.run.config.update(dict(hparams), allow_val_change=True)

    def write_status(self, success: bool) -> None:
        """End the run as finished or failed."""
        if self.run is not None and not self._guard.in_child:
            run, self.run = self.run, None
            run.finish(exit_code=0 if success else 1)

    def flush(self) -> None:
        """Do nothing: W&B's own process writes what it gets at once."""

    def close(self) -> None:
        """End the run as finished, unless it ended already."""
        self.write_status(success=True)

    def _run_id(self, name: str) -> str:
        path = self.directory / f"{name.replace('/', '_')}.id"
        if path.exists():
            return path.read_text(encoding="utf-8").strip()
        made = secrets.token_hex(4)
        path.write_text(made + "\n", encoding="utf-8")
        return made

    def _encode(self, value: Value) -> Any:
        if isinstance(value, Scalar):
            return value.value
        if isinstance(value, Histogram):
            return self._wandb.Histogram(np_histogram=filled_bins(value))
        if isinstance(value, Image):
            return self._wandb.Image(_picture(value.pixels))
        if isinstance(value, Video):
            return [self._wandb.Image(_picture(frame)) for frame in value.frames]
        if isinstance(value, Text):
            return self._wandb.Html(f"<pre>{_escape(value.markdown)}</pre>")
        return self._table(value) if isinstance(value, Embedding) else None

    def _table(self, value: Embedding) -> Any:
        columns = [f"x{index}" for index in range(value.vectors.shape[1])]
        table = self._wandb.Table(columns=["label", *columns])
        labels = value.labels or [str(index) for index in range(len(value.vectors))]
        for label, row in zip(labels, value.vectors.tolist(), strict=True):
            table.add_data(label, *row)
        return table


def filled_bins(value: Histogram) -> tuple[Any, Any]:
    """Return counts and finite edges of the filled stretch, in at most 512 bins."""
    filled = np.flatnonzero(value.counts)
    if not len(filled):
        return np.zeros(1, dtype=np.int64), np.array([0.0, 1.0])
    first, last = int(filled[0]), int(filled[-1]) + 1
    counts, edges = value.counts[first:last], value.edges[first : last + 1].copy()
    edges[~np.isfinite(edges)] = np.where(edges[~np.isfinite(edges)] < 0, value.minimum, value.maximum)
    width = -(-len(counts) // _MOST_BINS)
    starts = np.arange(0, len(counts), width)
    return np.add.reduceat(counts, starts), np.append(edges[starts], edges[-1])


def _picture(pixels: Any) -> Any:
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
