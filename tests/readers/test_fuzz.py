"""Whatever bytes a log holds, readers return numbers or raise ConfigError, and nothing else."""

import json
import math
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.summary.writer.record_writer import RecordWriter

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.readers.events import event_log
from hjepa_dist_metrics.readers.logs import jsonl_log, read_scalars
from hjepa_dist_metrics.sinks import JsonlSink, read_jsonl
from hjepa_dist_metrics.values import Scalar

many = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


def event_file(folder, records):
    path = folder / "events.out.tfevents.1.fuzz"
    with open(path, "wb") as file:
        writer = RecordWriter(file)
        for record in records:
            writer.write(record)
    return path


def read_all(path):
    """Return what the reader of event files makes of one, None where it raises ConfigError."""
    with suppress(ConfigError):
        return event_log(path)
    return None


@many
@given(st.binary(max_size=400))
def test_bytes_that_are_no_event_file(tmp_path, data):
    path = tmp_path / "events.out.tfevents.0"
    path.write_bytes(data)
    read_all(path)


@many
@given(st.lists(st.binary(max_size=100), max_size=5))
def test_whole_records_of_anything(tmp_path, records):
    read_all(event_file(tmp_path, records))


SIZES = st.lists(st.sampled_from([-2, 0, 1, 2, 10**9]), max_size=4)
DIMENSIONS = SIZES.map(lambda sizes: [TensorShapeProto.Dim(size=size) for size in sizes])
TENSORS = st.builds(
    lambda kind, dims, floats, content: TensorProto(
        dtype=kind, tensor_shape=TensorShapeProto(dim=dims), float_val=floats, tensor_content=content
    ),
    st.sampled_from([0, 1, 2, 3, 7, 10, 14, 20, 23]),
    DIMENSIONS,
    st.lists(st.floats(width=32), max_size=3),
    st.binary(max_size=16),
)
PLUGINS = st.sampled_from(["scalars", "images", "", "hparams", "text"]).map(
    lambda name: SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(plugin_name=name, content=b"\x0a\x01")
    )
)
TAGS = st.text("ab/ж", max_size=8) | st.just("_hparams_/session_start_info")
SUMMARIES = st.builds(Summary.Value, tag=TAGS, simple_value=st.floats(width=32)) | st.builds(
    Summary.Value, tag=TAGS, tensor=TENSORS, metadata=PLUGINS
)
EVENTS = st.builds(
    lambda step, values: Event(step=step, summary=Summary(value=values)),
    st.integers(-(2**63), 2**63 - 1),
    st.lists(SUMMARIES, max_size=3),
) | st.builds(
    lambda step: Event(step=step, session_log=SessionLog(status=SessionLog.START)), st.integers(-5, 5)
)


@many
@given(st.lists(EVENTS, max_size=4))
def test_events_of_any_shape(tmp_path, events):
    log = read_all(event_file(tmp_path, [event.SerializeToString() for event in events]))
    if log is not None:
        for points in log.scalars.values():
            assert points == sorted(points, key=lambda point: point[0])
            assert all(isinstance(value, float) for _, value in points)
        assert log.pictures == {}
        assert all(isinstance(text, str) for _, text in log.texts.values())


RECORDS = [
    Event(step=step, summary=Summary(value=[Summary.Value(tag="a", simple_value=step / 2)]))
    for step in range(4)
]


@many
@given(st.data())
def test_a_changed_byte_is_an_error_or_costs_the_end(tmp_path, data):
    path = event_file(tmp_path, [event.SerializeToString() for event in RECORDS])
    whole = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(whole) - 1))
    change = data.draw(st.integers(1, 255))
    whole[at] ^= change
    path.write_bytes(bytes(whole[: data.draw(st.integers(at + 1, len(whole)))]))
    log = read_all(path)
    points = [(step, step / 2) for step in range(4)]
    assert log is None or log.scalars.get("a", []) == points[: len(log.scalars.get("a", []))]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
STEPS = st.fixed_dictionaries({"step": JSON}, optional={"hparams": JSON, "wall_time": JSON, "a": JSON})
LINES = (JSON | STEPS).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=30)


@many
@given(st.lists(LINES, max_size=6))
def test_lines_of_anything(tmp_path, lines):
    path = tmp_path / "run.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    records = read_jsonl(path)
    assert all(type(record["step"]) is int for record in records)
    with suppress(ConfigError):  # it holds no scalars
        ((_, table),) = read_scalars(path).items()
        assert all(isinstance(value, float) for points in table.values() for _, value in points)
    jsonl_log(path)


@many
@given(st.lists(LINES, max_size=6), st.integers(0, 5))
def test_a_resumed_run_makes_a_whole_file_of_anything(tmp_path, lines, start):
    path = tmp_path / "run.jsonl"
    path.write_bytes(b"\n".join(lines))
    before = [record for record in read_jsonl(path) if record["step"] < start]
    sink = JsonlSink(path, start)
    sink.write(start, {"mine": Scalar(0.5)})
    sink.close()
    content = path.read_bytes()
    assert content.endswith(b"\n")
    assert all(json.loads(line)["step"] <= start for line in content.splitlines() if line.strip())
    after = read_jsonl(path)
    assert (after[-1]["step"], after[-1]["mine"]) == (start, 0.5)
    assert len(after) - 1 in (len(before), len(before) - 1)  # a last line without an end goes


@pytest.mark.parametrize(
    "line",
    [b"[" * 100_000, b'{"step": ' + b"9" * 5000 + b"}", b'{"step": 1, "a": ' + b"9" * 400 + b"}", b"\xff"],
)
def test_lines_that_break_parsers(tmp_path, line):
    path = tmp_path / "run.jsonl"
    path.write_bytes(line + b'\n{"step": 2, "b": 1}\n')
    table = read_scalars(path)["run"]
    assert table["b"] == [(2, 1.0)]
    assert table.get("a", [(1, math.inf)]) == [(1, math.inf)]
