"""MLflow: metrics, parameters and figures of one run on a tracking server (extra `mlflow`)."""

from __future__ import annotations

import functools
import posixpath
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hjepa_dist_metrics.errors import MissingExtraError
from hjepa_dist_metrics.sinks.base import ForkGuard, HParam, LeftOut
from hjepa_dist_metrics.sinks.tensorboard.png import encode_apng, encode_png
from hjepa_dist_metrics.sinks.text import file_name, with_digest, without_credentials
from hjepa_dist_metrics.values import Image, Notice, Scalar, Text, Value, Video

R = TypeVar("R")

# What a server takes in one request, and how long names and parameters may be.
_MOST_METRICS, _MOST_PARAMS = 1000, 100
_LONGEST_NAME, _LONGEST_PARAM = 250, 6000


class MlflowSink:
    """Send values to one MLflow run, whose id is kept in `<directory>/<name>.id` for when it is resumed.

    Numbers become metrics, settings parameters, pictures and texts artifacts `figures/<tag>/` and
    `text/<tag>/`; an alert becomes a tag of the run. MLflow has no place for histograms, embeddings and
    graphs. It keeps every point that it was ever sent: a resumed run leaves out the steps that are there.
    """

    def __init__(
        self, directory: str | Path, name: str, experiment: str, tracking_uri: str | None = None
    ) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise MissingExtraError("mlflow", "mlflow", "Logging to MLflow") from error
        self._mlflow: Any = mlflow
        self._guard, self._left_out = ForkGuard(), LeftOut()
        self._client: Any = mlflow.MlflowClient(tracking_uri)
        self._name = f"MLflow at {without_credentials(self._client.tracking_uri)}"
        self._id_file = Path(directory) / f"{file_name(name)}.id"
        self.run_id, self._is_resumed = self._call(self._find_or_create, name, experiment)
        self._steps_there: dict[str, set[int]] = {}
        self._ended = False

    def __str__(self) -> str:
        return self._name

    def write(self, step: int, values: Mapping[str, Value], wall_time: float | None = None) -> None:
        """Send one step's values; raises ConnectionError where the server cannot be reached or is ill."""
        if self._ended or self._guard.in_child:
            return
        stamp = int(1000 * (time.time() if wall_time is None else wall_time))
        metrics = [
            self._mlflow.entities.Metric(metric_name(tag), value.value, stamp, int(step))
            for tag, value in values.items()
            if isinstance(value, Scalar) and not self._has(metric_name(tag), step)
        ]
        for part in _parts(metrics, _MOST_METRICS):
            self._call(self._client.log_batch, self.run_id, part)
        for tag, value in values.items():
            if not isinstance(value, Scalar):
                self._call(self._send, tag, int(step), value)

    def write_hparams(self, hparams: Mapping[str, HParam], metrics: Sequence[str] = ()) -> None:
        """Make the settings the run's parameters; MLflow lets none change, so that those there stay."""
        if self._ended or self._guard.in_child:
            return
        there = self._call(self._client.get_run, self.run_id).data.params
        params = [
            self._mlflow.entities.Param(metric_name(key), str(value)[:_LONGEST_PARAM])
            for key, value in hparams.items()
            if metric_name(key) not in there
        ]
        for part in _parts(params, _MOST_PARAMS):
            self._call(self._client.log_batch, self.run_id, (), part)

    def write_status(self, success: bool) -> None:
        """End the run as finished or failed."""
        if not self._ended and not self._guard.in_child:
            self._call(self._client.set_terminated, self.run_id, "FINISHED" if success else "FAILED")
            self._ended = True

    def flush(self) -> None:
        """Do nothing: every request is answered before the next."""

    def close(self) -> None:
        """End the run as finished, unless it ended already."""
        self.write_status(success=True)

    def _find_or_create(self, name: str, experiment: str) -> tuple[str, bool]:
        if self._id_file.exists():
            run_id = self._id_file.read_text(encoding="utf-8").strip()
            try:
                self._client.update_run(run_id, status="RUNNING")
                return run_id, True
            except self._mlflow.exceptions.MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        found = self._client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found else self._client.create_experiment(experiment)
        run_id = self._client.create_run(experiment_id, run_name=name).info.run_id
        self._id_file.parent.mkdir(parents=True, exist_ok=True)
        self._id_file.write_text(run_id + "\n", encoding="utf-8")
        return run_id, False

    def _has(self, name: str, step: int) -> bool:
        if not self._is_resumed:
            return False
        if name not in self._steps_there:
            history = self._call(self._client.get_metric_history, self.run_id, name)
            self._steps_there[name] = {point.step for point in history}
        return step in self._steps_there[name]

    def _send(self, tag: str, step: int, value: Value) -> None:
        if isinstance(value, Image):
            self._send_file("figures", tag, f"step_{step:08d}.png", encode_png(value.pixels))
        elif isinstance(value, Video):
            self._send_file("figures", tag, f"step_{step:08d}.png", encode_apng(value.frames, value.fps))
        elif isinstance(value, Text):
            self._send_file("text", tag, f"step_{step:08d}.md", value.markdown.encode())
        elif isinstance(value, Notice):
            self._client.set_tag(self.run_id, metric_name(tag), f"step {step}: {value.title}")
        else:
            self._left_out.report(self, tag, value)

    def _send_file(self, kind: str, tag: str, name: str, content: bytes) -> None:
        folder = "/".join([kind, *(file_name(part) for part in tag.split("/") if part)])
        with tempfile.TemporaryDirectory() as place:
            (Path(place) / name).write_bytes(content)
            self._client.log_artifact(self.run_id, str(Path(place) / name), folder)

    def _call(self, request: Callable[..., R], *arguments: Any) -> R:
        """Make a request.

        Raises ConnectionError where the server is ill or out of reach, and ValueError for what it refuses.
        """
        try:
            return request(*arguments)
        except self._mlflow.exceptions.MlflowException as error:
            message = f"{self._name} failed: {without_credentials(str(error))[:300]}"
            if error.get_http_status_code() >= 500 or error.error_code == "REQUEST_LIMIT_EXCEEDED":
                raise ConnectionError(message) from error
            raise ValueError(message) from error


@functools.lru_cache(maxsize=8192)
def metric_name(tag: str) -> str:
    """Return a tag as MLflow takes names: letters, digits, `_-. :/`, at most 250, a clean path."""
    clean = posixpath.normpath(re.sub(r"[^\w\-. :/]", "_", tag).strip("/")).lstrip("./") or "_"
    if clean == tag and len(tag) <= _LONGEST_NAME:
        return tag
    return with_digest(clean, tag, _LONGEST_NAME)


def _parts(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    listed = list(items)
    for start in range(0, len(listed), size):
        yield listed[start : start + size]
