"""Sinks together: a failure of one is said once and touches nothing else."""

import errno
import shutil
import subprocess
import sys

import pytest

from hjepa_dist_metrics.readers.events import event_log
from hjepa_dist_metrics.sinks import JsonlSink, MemorySink, SinkGroup, TensorBoardSink, read_jsonl
from hjepa_dist_metrics.sinks.base import RunSink
from hjepa_dist_metrics.values import Scalar, Text


class FailingSink(MemorySink):
    """Fail in the methods named."""

    def __init__(self, *verbs):
        super().__init__()
        self.verbs, self.calls = verbs, []

    def __str__(self):
        return "failing (/some/path)"

    def _maybe(self, verb):
        self.calls.append(verb)
        if verb in self.verbs:
            raise OSError(errno.EIO, "Input/output error")

    def write(self, step, values, wall_time=None):
        self._maybe("write")

    def flush(self):
        self._maybe("flush")

    def close(self):
        self._maybe("close")

    def write_hparams(self, hparams, metrics=()):
        self._maybe("write_hparams")

    def write_status(self, success):
        self._maybe("write_status")


class PlainSink:
    """Have no more than a sink must."""

    def write(self, step, values, wall_time=None):
        pass

    def flush(self):
        pass

    def close(self):
        pass


@pytest.mark.parametrize("verb", ["write", "flush", "close", "write_hparams", "write_status"])
def test_a_failing_sink_is_dropped_and_reported_once(verb, caplog):
    before, failing, after = MemorySink(), FailingSink(verb), MemorySink()
    group = SinkGroup([before, failing, after])
    for step in range(3):
        group.write_hparams({"lr": 0.1})
        group.write(step, {"a": Scalar(float(step))})
        group.flush()
        group.write_status(True)
    group.close()
    for sink in (before, after):
        assert sink.scalars("a") == [(0, 0.0), (1, 1.0), (2, 2.0)]
        assert (sink.closed, sink.success, sink.hparams) == (True, True, {"lr": 0.1})
    assert failing.calls.count(verb) == 1
    assert failing.calls[-1] == "close"
    (message,) = caplog.messages
    assert group.failures == [message]
    for part in ("failing (/some/path)", verb, "OSError", "Input/output error", "training"):
        assert part in message


def test_a_sink_that_fails_again_while_it_is_dropped_is_reported_once(caplog):
    group = SinkGroup([FailingSink("write", "close")])
    group.write(0, {})
    group.close()
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_sinks_without_run_facts_are_left_alone():
    assert isinstance(MemorySink(), RunSink)
    assert not isinstance(PlainSink(), RunSink)
    group = SinkGroup([PlainSink()])
    group.write_hparams({"lr": 1.0})
    group.write_status(True)
    assert group.failures == []


class PickySink(MemorySink):
    """Take no tag that begins with "bad"."""

    def write(self, step, values, wall_time=None):
        if any(tag.startswith("bad") for tag in values):
            raise ValueError("a bad tag")
        super().write(step, values, wall_time)


def test_one_bad_value_is_left_out_once_said_and_the_sink_goes_on(caplog):
    picky, other = PickySink(), MemorySink()
    group = SinkGroup([picky, other])
    for step in range(20):
        group.write(step, {"a": Scalar(1.0), "bad/1": Scalar(2.0), "b": Scalar(3.0)})
    assert [step for step, _ in picky.scalars("b")] == list(range(20))
    assert len(other.records) == 20
    assert picky.tags() == {"a", "b"}
    (message,) = caplog.messages
    assert "memory leaves out 'bad/1': ValueError: a bad tag" in message
    assert group.failures == []


def test_a_sink_that_takes_nothing_at_all_is_dropped_in_the_end(caplog):
    picky = PickySink()
    group = SinkGroup([picky])
    for step in range(20):
        group.write(step, {"bad": Scalar(1.0)})
    assert picky.closed
    assert len(group.failures) == 1
    assert len(caplog.messages) == 2


def test_tags_and_texts_with_half_a_surrogate_reach_every_sink(tmp_path):
    kept = MemorySink()
    board = TensorBoardSink(tmp_path / "board")
    group = SinkGroup([kept, board, JsonlSink(tmp_path / "x.jsonl")])
    group.write_hparams({"k\udc80": "v\udc80"})
    group.write(0, {"a\udc80": Scalar(1.0), "t": Text("x\ud800y"), "ж": Scalar(2.0)})
    group.close()
    assert group.failures == []
    assert kept.tags() == {"a\\udc80", "t", "ж"}
    assert kept.hparams == {"k\\udc80": "v\\udc80"}
    assert read_jsonl(tmp_path / "x.jsonl")[1]["a\\udc80"] == 1.0
    assert set(event_log(tmp_path / "board").scalars) == {"a\\udc80", "ж"}


def test_a_sink_that_cannot_open_leaves_the_others(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("a file where a directory belongs")
    board, lines = tmp_path / "tensorboard" / "run", tmp_path / "metrics" / "run.jsonl"
    group = SinkGroup.open(
        {f"TensorBoard ({board})": lambda: TensorBoardSink(board), "JSON lines": lambda: JsonlSink(lines)}
    )
    group.write(0, {"a": Scalar(1.0)})
    group.close()
    assert [record["a"] for record in read_jsonl(lines)] == [1.0]
    (message,) = caplog.messages
    assert f"TensorBoard ({board}) failed in open" in message


def test_a_directory_removed_during_the_run_ends_its_sink_only(tmp_path, caplog):
    board = TensorBoardSink(tmp_path / "board")
    group = SinkGroup([board, JsonlSink(tmp_path / "x.jsonl")])
    group.write(0, {"a": Scalar(0.0)})
    group.flush()
    shutil.rmtree(tmp_path / "board")
    for step in range(1, 5):
        group.write(step, {"a": Scalar(float(step))})
        group.flush()
    group.close()
    assert [record["step"] for record in read_jsonl(tmp_path / "x.jsonl")] == [0, 1, 2, 3, 4]
    (message,) = caplog.messages
    assert f"TensorBoard ({tmp_path / 'board'})" in message


def test_the_report_reaches_stderr_without_any_logging_set_up():
    code = (
        "from hjepa_dist_metrics.sinks import SinkGroup\n"
        "class Bad:\n"
        "    def __str__(self): return 'bad (/p)'\n"
        "    def write(self, *_): raise OSError('full')\n"
        "    def close(self): pass\n"
        "group = SinkGroup([Bad()])\n"
        "group.write(0, {}); group.write(1, {})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("bad (/p) failed in write") == 1
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_one_line(caplog):
    class Full:
        def __init__(self, name):
            self.name = name

        def __str__(self):
            return self.name

        def write(self, step, values, wall_time=None):
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self):
            pass

        def close(self):
            pass

    group = SinkGroup([Full("events"), Full("lines")])
    group.write(0, {"a": Scalar(1.0)})
    (message,) = group.failures
    assert "the disk is full (No space left on device): logging to events is switched off" in message
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [message]
    assert group.sinks == ()
