"""JSON lines: strict, readable while the run is on, exactly once over a resume."""

import json
import math
import os
import shutil

import numpy as np
import pytest
from hypothesis import given, strategies as st

from hjepa_dist_metrics.readers.logs import jsonl_log
from hjepa_dist_metrics.sinks.jsonl import JsonlSink, read_jsonl
from hjepa_dist_metrics.values import Embedding, Histogram, Image, Scalar, Text


def strict(text):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


@given(st.dictionaries(st.text(min_size=1).map("t/".__add__), st.floats(), min_size=1))
def test_any_scalars_make_strict_json_and_read_back(tmp_path_factory, numbers):
    path = tmp_path_factory.mktemp("run") / "x.jsonl"
    sink = JsonlSink(path)
    sink.write(4, {tag: Scalar(value) for tag, value in numbers.items()}, wall_time=9.5)
    sink.close()
    (line,) = path.read_bytes().split(b"\n")[:-1]
    strict(line)
    (record,) = read_jsonl(path)
    assert (record.pop("step"), record.pop("wall_time")) == (4, 9.5)
    np.testing.assert_equal(record, numbers)


def test_lines_are_readable_while_the_run_is_on(tmp_path):
    sink = JsonlSink(tmp_path / "deep" / "x.jsonl")
    sink.write(0, {"a": Scalar(1.0)})
    assert [record["a"] for record in read_jsonl(sink.path)] == [1.0]
    sink.write(1, {"a": Scalar(2.0)})
    assert [record["a"] for record in read_jsonl(sink.path)] == [1.0, 2.0]
    sink.close()


def test_other_kinds_have_a_summary_or_no_line(tmp_path):
    sink = JsonlSink(tmp_path / "x.jsonl")
    values = np.array([1.0, 2.0, 2.0, 5.0])
    counts, edges = np.histogram(values, bins=4, range=(0, 8))
    full = Histogram(edges, counts, values.min(), values.max(), values.sum(), (values**2).sum(), nonfinite=3)
    empty = Histogram(edges, counts * 0, math.inf, -math.inf, 0.0, 0.0)
    sink.write(0, {"h": full, "e": empty, "note": Text("NaN")})
    sink.write(1, {"i": Image(np.zeros((1, 1, 1), np.uint8)), "p": Embedding(np.ones((1, 1), np.float32))})
    sink.close()
    (record,) = read_jsonl(sink.path)
    expected = {"count": 4, "nonfinite": 3, "min": 1.0, "max": 5.0, "mean": 2.5, "std": values.std()}
    assert record["h"]["histogram"] == pytest.approx(expected)
    assert record["e"] == {"histogram": {"count": 0, "nonfinite": 0}}
    assert record["note"] == {"text": "NaN"}


def test_a_truncated_last_line_is_left_out(tmp_path):
    sink = JsonlSink(tmp_path / "x.jsonl")
    for step in range(3):
        sink.write(step, {"é": Scalar(float(step))})
    sink.close()
    whole = sink.path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(last, len(whole) - 1):
        sink.path.write_bytes(whole[:end])
        assert [record["step"] for record in read_jsonl(sink.path)] == [0, 1], end


def test_a_broken_line_inside_is_skipped_and_named(tmp_path, caplog):
    (tmp_path / "x.jsonl").write_text('{"step": 0}\n{"step": \n[1]\n{"a": 1}\n{"step": 2}\n')
    assert [record["step"] for record in read_jsonl(tmp_path / "x.jsonl")] == [0, 2]
    (message,) = caplog.messages
    assert "x.jsonl: lines 2, 3, 4 are broken and skipped" in message


def test_a_resumed_run_repairs_broken_lines_and_says_so(tmp_path, caplog):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"step": 0, "a": 1}\n{"step": \xff\n{"step": 2, "a": 3}\n{"st')
    sink = JsonlSink(path, start_step=3)
    sink.write(3, {"a": Scalar(4.0)})
    sink.close()
    (message,) = caplog.messages
    assert "1 broken line(s) removed" in message
    assert [(record["step"], record["a"]) for record in read_jsonl(path)] == [(0, 1), (2, 3), (3, 4)]
    assert len(caplog.messages) == 1


def test_a_lone_surrogate_is_written_out_and_every_line_is_strict(tmp_path):
    sink = JsonlSink(tmp_path / "x.jsonl")
    sink.write_hparams({"name\udc80": "value\ud800"})
    sink.write(0, {"tag\udcff": Scalar(1.0), "t": Text("x\udc80"), "ж": Scalar(2.0)})
    sink.close()
    settings, record = read_jsonl(sink.path)
    assert settings["hparams"] == {"name\\udc80": "value\\ud800"}
    assert (record["tag\\udcff"], record["t"], record["ж"]) == (1.0, {"text": "x\\udc80"}, 2.0)
    sink.path.read_bytes().decode("utf-8")


@given(st.integers(0, 12), st.integers(0, 40))
def test_resume_leaves_each_step_once_also_after_a_cut(tmp_path_factory, start, cut):
    path = tmp_path_factory.mktemp("run") / "x.jsonl"
    first = JsonlSink(path)
    for step in range(12):
        first.write(step, {"a": Scalar(float(step))})
    first.close()
    path.write_bytes(path.read_bytes()[: -cut or None] if start < 10 else path.read_bytes())
    second = JsonlSink(path, start_step=start)
    for step in range(start, 15):
        second.write(step, {"a": Scalar(100.0 + step)})
    second.close()
    assert [(record["step"], record["a"]) for record in read_jsonl(path)] == [
        (step, float(step) if step < start else 100.0 + step) for step in range(15)
    ]


def test_tags_that_a_record_needs_itself_do_no_harm(tmp_path):
    sink = JsonlSink(tmp_path / "x.jsonl")
    sink.write(3, {"step": Scalar(0.5), "wall_time": Scalar(1.5), "hparams": Scalar(2.5)}, wall_time=9.0)
    sink.close()
    (record,) = read_jsonl(sink.path)
    assert (record["step"], record["wall_time"]) == (3, 9.0)
    assert jsonl_log(sink.path).scalars == {
        "step": [(3, 0.5)],
        "wall_time": [(3, 1.5)],
        "hparams": [(3, 2.5)],
    }


def test_a_removed_file_is_made_again_and_that_is_said(tmp_path, caplog):
    sink = JsonlSink(tmp_path / "x.jsonl")
    sink.write(0, {"a": Scalar(1.0)})
    (tmp_path / "x.jsonl").unlink()
    for step in (1, 2):
        sink.write(step, {"a": Scalar(1.0)})
    sink.close()
    assert [record["step"] for record in read_jsonl(sink.path)] == [1, 2]
    (message,) = caplog.messages
    assert "x.jsonl) was removed while the run was writing to it; it goes on in a new file" in message


def test_a_removed_directory_is_an_error(tmp_path):
    sink = JsonlSink(tmp_path / "run" / "x.jsonl")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(FileNotFoundError):
        sink.write(0, {"a": Scalar(1.0)})
    sink.close()


def test_a_file_in_place_of_the_directory_raises(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OSError, match="taken"):
        JsonlSink(tmp_path / "taken" / "x.jsonl")


class PartialFile:
    """A raw file that takes at most 7 bytes at a time, and `room` in all."""

    def __init__(self, room):
        self.data, self.room = b"", room

    def write(self, data):
        taken = bytes(data[: min(7, self.room - len(self.data))])
        if not taken:
            raise OSError(28, "No space left on device")
        self.data += taken
        return len(taken)

    def close(self):
        self.closed = True


@pytest.fixture
def partial_sink(tmp_path):
    def make(room):
        sink = JsonlSink(tmp_path / "x.jsonl")
        sink._file.close()
        sink._file = PartialFile(room)
        return sink

    return make


def test_short_writes_are_continued(partial_sink):
    sink = partial_sink(10_000)
    sink.write(0, {"a": Scalar(1.0)}, wall_time=2.0)
    assert json.loads(sink._file.data) == {"step": 0, "wall_time": 2.0, "a": 1.0}


def test_a_full_disk_raises(partial_sink):
    sink = partial_sink(20)
    with pytest.raises(OSError, match="No space left"):
        sink.write(0, {"a": Scalar(1.0)})


def test_a_forked_child_writes_nothing(tmp_path):
    sink = JsonlSink(tmp_path / "x.jsonl")
    sink._guard._pid = os.getpid() + 1
    sink.write(0, {"a": Scalar(1.0)})
    sink.close()
    assert sink.path.read_bytes() == b""
