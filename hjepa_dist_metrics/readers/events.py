"""TensorBoard event files, with damage told apart from the torn end of a killed run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hjepa_dist_metrics.catalog.headline import is_second_name
from hjepa_dist_metrics.errors import ConfigError, MissingExtraError
from hjepa_dist_metrics.readers.records import read_records
from hjepa_dist_metrics.readers.run_log import RunLog, as_table

# `add_text` of torch's SummaryWriter appends it to the tag.
_TEXT_SUFFIX = "/text_summary"


def event_log(path: str | Path) -> RunLog:
    """Return what an event file holds, or a directory's event files in the order of their names.

    As in TensorBoard, a restart at step s takes back what was written from s on, and of values at one step
    the last counts. A last record cut short by a kill is left out. Raises ConfigError where a file is not an
    event file or is damaged before its end.
    """
    place, log = Path(path), RunLog()
    points: dict[str, dict[int, float]] = {}
    for file in [place] if place.is_file() else sorted(place.glob("*tfevents*")):
        log.host = _host(file) or log.host
        for event in _events(file):
            step = int(event.step)
            if event.HasField("session_log") and event.session_log.status == event.session_log.START:
                _take_back(points, log, step)
            for value in event.summary.value:
                log.add_time(float(event.wall_time))
                _add(file, value, step, points, log)
    log.scalars = as_table(points)
    return log


def _add(file: Path, value: Any, step: int, points: dict[str, dict[int, float]], log: RunLog) -> None:
    plugin = value.metadata.plugin_data.plugin_name
    number = None if is_second_name(value.tag) else _scalar(file, value)
    if number is not None:
        points.setdefault(value.tag, {})[step] = number
    elif value.HasField("image"):
        log.add_picture(value.tag, step, value.image.encoded_image_string)
    elif value.HasField("tensor") and plugin == "text":
        log.texts[value.tag.removesuffix(_TEXT_SUFFIX)] = (step, _text(value.tensor))
    elif plugin == "hparams":
        log.settings.update(_settings(file, value))


def _settings(file: Path, value: Any) -> dict[str, object]:
    """Return the settings of TensorBoard's HPARAMS table; {} for another of its values."""
    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    if value.tag != metadata.SESSION_START_INFO_TAG:
        return {}
    content = value.metadata.plugin_data.content
    data = _decoded(file, value.tag, lambda: HParamsPluginData.FromString(content))
    found: dict[str, object] = {}
    for key, entry in data.session_start_info.hparams.items():
        setting = getattr(entry, entry.WhichOneof("kind") or "string_value")
        whole = isinstance(setting, float) and setting.is_integer()
        found[key] = int(setting) if whole else setting  # the table knows floats only
    return found


def _text(tensor: Any) -> str:
    return b"\n".join(tensor.string_val).decode("utf-8", "replace")


def _host(file: Path) -> str:
    """Return the machine of `events.out.tfevents.<seconds>.<host>.<process>.<number>`, "" for other names."""
    match = re.fullmatch(r"events\.out\.tfevents\.\d+\.(.+)\.\d+\.\d+(?:\.v2)?", file.name)
    return match[1] if match else ""


def _events(file: Path) -> Iterator[Any]:
    try:
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
        from tensorboard.compat.proto.event_pb2 import Event
    except ImportError as error:
        raise MissingExtraError("tensorboard", "figures", "Reading event files") from error
    for at, record in read_records(file):
        try:
            yield Event.FromString(record)
        except DecodeError as error:
            raise ConfigError(f"{file} is damaged: the record at byte {at} is no event ({error})") from error


def _decoded(file: Path, tag: str, decode: Callable[[], Any]) -> Any:
    """Return what a value holds; ConfigError where it is none of its kind."""
    try:
        return decode()
    except Exception as error:  # protobuf's and NumPy's errors are of many types
        raise ConfigError(f"{file} is damaged: the value of {tag!r} cannot be read ({error})") from error


def _scalar(file: Path, value: Any) -> float | None:
    """Return the number of a scalar summary, old style or new; None for any other kind."""
    if value.HasField("simple_value"):
        return float(value.simple_value)
    if value.HasField("tensor") and value.metadata.plugin_data.plugin_name == "scalars":
        return float(_decoded(file, value.tag, lambda: _only_element(value.tensor)))
    return None


def _only_element(tensor: Any) -> float:
    from tensorboard.util.tensor_util import make_ndarray

    sizes = [dim.size for dim in tensor.tensor_shape.dim]
    if any(size != 1 for size in sizes):  # a shape can ask for any amount of memory
        raise ValueError(f"expected one number, got a tensor of shape {sizes}")
    return float(make_ndarray(tensor).item())


def _take_back(points: dict[str, dict[int, float]], log: RunLog, step: int) -> None:
    for values in points.values():
        for later in [at for at in values if at >= step]:
            del values[later]
    for tag, pictures in list(log.pictures.items()):
        earlier = [picture for picture in pictures if picture[0] < step]
        log.pictures[tag] = earlier
        if not earlier:
            del log.pictures[tag]
