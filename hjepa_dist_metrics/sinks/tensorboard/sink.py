"""TensorBoard event files through torch.utils.tensorboard: one event a step, nothing lost on resume."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hjepa_dist_metrics.catalog import describe
from hjepa_dist_metrics.errors import MetricsError
from hjepa_dist_metrics.sinks.base import ForkGuard, HParam
from hjepa_dist_metrics.sinks.tensorboard.layout import Layout, MakeLayout, encode_layout
from hjepa_dist_metrics.sinks.tensorboard.projector import ProjectorFiles
from hjepa_dist_metrics.sinks.tensorboard.records import GuardedRecords
from hjepa_dist_metrics.sinks.tensorboard.summaries import encode
from hjepa_dist_metrics.values import Embedding, Graph, Notice, Scalar, Value

logger = logging.getLogger("hjepa_dist_metrics.sinks")

# From a tag, the names that its values are written under.
Names = Callable[[str], tuple[str, ...]]


def own_name(tag: str) -> tuple[str, ...]:
    """Return the tag alone."""
    return (tag,)


class TensorBoardSink:
    """Write values into one event file under `directory`.

    All values of a step go out as one Event (40 scalars: 39 us, against 1.4 ms as 40 events). The file is
    opened with `purge_step=start_step`, 0 included, so that what a killed run wrote at that step and later
    is superseded by the resumed run. `layout` becomes the custom-scalars dashboards; where it is a function
    of the tags written, it is asked with the first values of a loss, whenever new tags come after that, and
    at the end. `names` gives the names that scalars of a tag are written under, none to leave them out. A
    tag's first value carries the catalog's description. `writer` is the SummaryWriter underneath, for what
    this class does not cover (meshes, audio).
    """

    local = True

    def __init__(
        self,
        directory: str | Path,
        start_step: int = 0,
        flush_secs: float = 10.0,
        layout: Layout | MakeLayout | None = None,
        names: Names = own_name,
    ) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MetricsError(
                f"event files need tensorboard (pip install 'tensorboard>=2.21'): {error}"
            ) from error
        self.directory = Path(directory)
        self._guard = ForkGuard()
        self._kinds: dict[str, str] = {}
        self._left_out: set[tuple[str, str]] = set()
        self._closed = False
        # What a file begins with, for one that must be made again.
        self._flush_secs, self._layout = flush_secs, None if callable(layout) else layout
        self._make_layout = layout if callable(layout) else None
        self._laid_out, self._names = 0, names
        self._hparams: tuple[Mapping[str, HParam], Sequence[str]] | None = None
        self._open(SummaryWriter, start_step)
        self._projector = ProjectorFiles(self.directory, start_step)

    def _open(self, writer_class: Any, start_step: int) -> None:
        _wait_for_a_later_name(self.directory)
        self.writer = writer_class(
            str(self.directory), purge_step=start_step, max_queue=1000, flush_secs=self._flush_secs
        )
        self._file: Any = self.writer.file_writer
        self._records = GuardedRecords.put_under(self._file)
        if self._layout:
            self._add_layout(self._layout)
        self.flush()
        self._path = max(self.directory.glob("events.out.tfevents.*"))  # names begin with the second

    def __str__(self) -> str:
        return f"TensorBoard ({self.directory})"

    def write(self, step: int, values: Mapping[str, Value], wall_time: float | None = None) -> None:
        """Write one step's values; raises the OSError of an earlier write that failed on its way to disk."""
        if self._stopped():
            return
        if not self._path.exists() and self.directory.is_dir():
            self._make_again(int(step))
        entries = [
            entry
            for tag, value in values.items()
            for name in self._names_of(tag, value)
            if (entry := self._entry(name, value, int(step))) is not None
        ]
        if entries:
            from tensorboard.compat.proto.summary_pb2 import Summary

            now = time.time() if wall_time is None else wall_time
            self._file.add_summary(Summary(value=entries), int(step), now)
            if self._laid_out or any(tag.startswith("loss/") for tag in values):
                self._add_fitting_layout()

    def write_hparams(self, hparams: Mapping[str, HParam], metrics: Sequence[str] = ()) -> None:
        """Add the run to TensorBoard's HPARAMS table: its settings, and the scalar tags to compare by.

        Written as summaries of this very file: SummaryWriter.add_hparams makes a second run of it.
        """
        from torch.utils.tensorboard.summary import hparams as hparams_summaries

        if self._stopped():
            return
        self._hparams = (hparams, metrics)
        experiment, start, _ = hparams_summaries(  # type: ignore[no-untyped-call]
            {key: _hparam(value) for key, value in hparams.items()}, dict.fromkeys(metrics, 0.0)
        )
        self._file.add_summary(experiment)
        self._file.add_summary(start)
        self.flush()

    def write_status(self, success: bool) -> None:
        """Record in the HPARAMS table how the run ended."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import metadata
        from tensorboard.plugins.hparams.api_pb2 import Status
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

        if self._stopped():
            return
        status = Status.Value("STATUS_SUCCESS" if success else "STATUS_FAILURE")
        data = HParamsPluginData(session_end_info=SessionEndInfo(status=status, end_time_secs=time.time()))
        entry = Summary.Value(
            tag=metadata.SESSION_END_INFO_TAG,
            metadata=metadata.create_summary_metadata(data),
            tensor=metadata.NULL_TENSOR,
        )
        self._file.add_summary(Summary(value=[entry]))

    def flush(self) -> None:
        """Write everything out to the file."""
        if self._stopped():
            return
        self._file.flush()
        self._records.raise_failure()

    def close(self) -> None:
        """Write everything out and close the file."""
        if self._closed or self._guard.in_child:
            return
        self._add_fitting_layout()
        self._closed = True
        self.writer.close()
        self._records.raise_failure()

    def _stopped(self) -> bool:
        """Return whether to keep still: closed (SummaryWriter would open another file), or a forked child."""
        if self._closed or self._guard.in_child:
            return True
        self._records.raise_failure()
        return False

    def _names_of(self, tag: str, value: Value) -> tuple[str, ...]:
        tag = tag.lstrip("/")  # a leading slash puts the tag into a group without a name
        if isinstance(value, Notice):
            return ()  # TensorBoard has the log of all alerts
        return self._names(tag) if isinstance(value, Scalar) else (tag,)

    def _entry(self, tag: str, value: Value, step: int) -> Any:
        """Return the Summary.Value to write; None where there is none, or the value is written already."""
        is_new = tag not in self._kinds
        if not self._accepts(tag, value):
            return None
        try:
            if isinstance(value, Embedding):
                self._projector.add(tag, step, value)
            elif isinstance(value, Graph):
                self._add_graph(value)
            else:
                return encode(tag, value, describe(tag) if is_new else "")
        except (ValueError, TypeError) as error:  # this value is wrong, not the disk
            self._leave_out(tag, value, str(error))
        return None

    def _accepts(self, tag: str, value: Value) -> bool:
        """Return whether TensorBoard can show it: a tag of two kinds makes its server answer with errors."""
        known = self._kinds.setdefault(tag, type(value).__name__)
        if not tag:
            self._leave_out(tag, value, "the tag is empty")
        elif known != type(value).__name__:
            self._leave_out(tag, value, f"the tag already holds values of kind {known}")
        return bool(tag) and known == type(value).__name__

    def _leave_out(self, tag: str, value: Value, reason: str) -> None:
        kind = type(value).__name__
        if (tag, kind) not in self._left_out:  # said once, not every step
            self._left_out.add((tag, kind))
            logger.error("%s leaves out %s %r: %s", self, kind, tag, reason)

    def _make_again(self, step: int) -> None:
        """Go on in a new file, from `step`, with dashboards and settings: the old one was deleted."""
        logger.warning("%s: the event file was deleted; the run goes on in a new one at step %d", self, step)
        self.writer.close()
        self._open(type(self.writer), step)
        if self._hparams is not None:
            self.write_hparams(*self._hparams)

    def _add_graph(self, value: Graph) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, TaggedRunMetadata

        self._file.add_event(Event(graph_def=value.graph_def))
        if value.run_metadata:
            tagged = TaggedRunMetadata(tag="step1", run_metadata=value.run_metadata)
            self._file.add_event(Event(tagged_run_metadata=tagged))

    def _add_fitting_layout(self) -> None:
        """Write the layout that fits the tags written so far; TensorBoard shows the last one."""
        if self._make_layout is None or len(self._kinds) == self._laid_out:
            return
        self._laid_out = len(self._kinds)
        layout = self._make_layout(self._kinds.keys())
        if layout != self._layout:
            self._layout = layout
            self._add_layout(layout)

    def _add_layout(self, layout: Layout) -> None:
        self._file.add_summary(encode_layout(layout))


def _wait_for_a_later_name(directory: Path) -> None:
    """Wait for the next second where one of the directory's files was opened in this one.

    TensorBoard reads a run's files by their names, which begin with that second: a resumed run's file that
    sorted first would be purged by the file it continues.
    """
    taken = {path.name.split(".")[3] for path in directory.glob("events.out.tfevents.*")}
    while f"{int(time.time()):010d}" in taken:
        time.sleep(0.05)


def _hparam(value: object) -> HParam:
    return value if isinstance(value, (bool, int, float, str)) else str(value)
