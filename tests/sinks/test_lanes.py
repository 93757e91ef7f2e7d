"""A place that hangs stalls nobody: the newest numbers stay, what is dropped is counted and said."""

import statistics
import threading
import time

import numpy as np
import pytest

from hjepa_dist_metrics import MetricsLogger
from hjepa_dist_metrics.sinks import BackgroundSink, MemorySink, SinkGroup, background
from hjepa_dist_metrics.sinks.lanes.entry import ENTRY_BYTES, SCALAR_BYTES, Entry
from hjepa_dist_metrics.sinks.lanes.queue import Room, WriteQueue
from hjepa_dist_metrics.values import Image, Scalar, Text

WRITE = ENTRY_BYTES + SCALAR_BYTES


class HangingSink(MemorySink):
    """A place behind a network that does not answer until it is told to."""

    local = False

    def __init__(self):
        super().__init__()
        self.answers, self.asked = threading.Event(), threading.Event()

    def __str__(self):
        return "a far place"

    def write(self, step, values, wall_time=None):
        self.asked.set()
        self.answers.wait()
        super().write(step, values, wall_time)


@pytest.fixture
def hanging(monkeypatch):
    monkeypatch.setattr(background, "REMOTE_FLUSH_SECONDS", 0.05)
    monkeypatch.setattr(background, "REMOTE_CLOSE_SECONDS", 30.0)
    sink = HangingSink()
    yield sink
    sink.answers.set()


def scalar(step):
    return {"a": Scalar(float(step))}


def picture(side=200):
    return Image(np.zeros((side, side, 3), np.uint8))


def test_a_place_that_hangs_keeps_its_newest_numbers_and_stalls_nobody(hanging, caplog):
    sink = BackgroundSink(hanging, capacity=100 * WRITE)
    sink.write(0, scalar(0))
    hanging.asked.wait()
    took = []
    for step in range(1, 1001):
        begun = time.perf_counter()
        sink.write(step, scalar(step))
        took.append(time.perf_counter() - begun)
    assert statistics.median(took) < 1e-3
    assert sink.dropped_steps == 900
    (warning,) = caplog.messages
    assert "a far place is slower than values come" in warning
    hanging.answers.set()
    sink.close()
    assert hanging.scalars("a") == [(0, 0.0), *((step, float(step)) for step in range(901, 1001))]
    assert sink.failures == [caplog.messages[-1]]
    assert "so far 900 writes and 0 pictures" in caplog.messages[-1]


def test_the_files_of_a_run_go_on_while_another_place_hangs(hanging):
    files = MemorySink()
    sink = BackgroundSink(SinkGroup([files, hanging]))
    for step in range(50):
        sink.write_later(step, lambda step=step: scalar(step))
    sink.flush()  # gives the far place its time and no more
    assert files.scalars("a") == [(step, float(step)) for step in range(50)]
    hanging.answers.set()
    sink.close()
    assert hanging.scalars("a") == files.scalars("a")


def test_the_end_of_a_run_gives_a_place_that_hangs_its_time_and_no_more(hanging, caplog, monkeypatch):
    monkeypatch.setattr(background, "REMOTE_CLOSE_SECONDS", 0.05)
    sink = BackgroundSink(hanging)
    for step in range(3):
        sink.write(step, scalar(step))
    hanging.asked.wait()
    sink.close()
    assert "4 writes were not taken in time and are lost at a far place" in caplog.messages[-1]


def test_pictures_go_before_numbers(hanging):
    sink = BackgroundSink(hanging, capacity=100 * WRITE)  # 230 kB of pictures: one of 120 kB
    sink.write(0, scalar(0))
    hanging.asked.wait()
    for step in range(1, 11):
        sink.write(step, {**scalar(step), "p": picture()})
    hanging.answers.set()
    sink.close()
    assert [step for step, _ in hanging.scalars("a")] == list(range(11))
    assert [record.step for record in hanging.records if "p" in record.values] == [10]
    assert "0 writes and 9 pictures" in sink.failures[0]


def test_a_picture_larger_than_the_queue_is_written(hanging):
    hanging.answers.set()
    sink = BackgroundSink(hanging, capacity=WRITE)
    sink.write(0, {"p": picture(2000)})
    sink.close()
    assert hanging.tags() == {"p"}


def test_settings_and_the_end_are_never_dropped(hanging):
    sink = BackgroundSink(hanging, capacity=4 * WRITE)
    sink.write(0, scalar(0))
    hanging.asked.wait()
    sink.write_hparams({"lr": 0.5})
    for step in range(1, 100):
        sink.write(step, scalar(step))
    sink.write_status(True)
    hanging.answers.set()
    sink.close()
    assert (hanging.hparams, hanging.success, hanging.closed) == ({"lr": 0.5}, True, True)
    assert [step for step, _ in hanging.scalars("a")] == [0, 96, 97, 98, 99]


def test_what_waits_is_bounded_in_bytes_and_counted_again_when_taken():
    queue = WriteQueue(10 * WRITE)
    for step in range(1000):
        queue.put(Entry.of(step, {**scalar(step), "t": Text("x" * 100)}, 0.0))
    held = len(queue)
    assert held * (WRITE + SCALAR_BYTES + 100) <= 10 * WRITE
    assert queue.dropped_steps == 1000 - held
    steps = [queue.take().step for _ in range(held)]
    assert steps == list(range(1000 - held, 1000))
    assert queue.put(Entry.of(0, scalar(0), 0.0)) is Room.PLENTY


def test_many_writers_and_a_reader_lose_and_double_nothing():
    queue, taken = WriteQueue(10**9), []

    def put(first):
        for step in range(first, first + 2000):
            values = {"p": picture(80)} if step % 7 == 0 else scalar(0)
            queue.put(Entry.of(step, values, 0.0))

    threads = [threading.Thread(target=put, args=(2000 * number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(6000):
        entry = queue.take()
        taken.append((entry.step, queue.take_large(entry) is not None))
    for thread in threads:
        thread.join()
    assert sorted(taken) == [(step, step % 7 == 0) for step in range(6000)]
    assert (len(queue), queue.dropped_steps, queue.dropped_values) == (0, 0, 0)


def test_a_value_that_cannot_be_made_leaves_the_rest_of_the_run(caplog):
    inner = MemorySink()
    sink = BackgroundSink(inner)
    for _ in range(9):
        sink.write_later(3, lambda: {"a": Scalar(1 / 0)})
    sink.write(4, scalar(4))
    sink.close()
    assert inner.scalars("a") == [(4, 4.0)]
    (message,) = caplog.messages
    assert "step 3 is left out, as later of its kind: ZeroDivisionError" in message


def test_a_step_of_the_logger_does_not_wait_for_a_place_that_hangs(tmp_path, hanging):
    with MetricsLogger("run", tmp_path, sinks=[lambda: hanging]) as logger:
        took = []
        for step in range(2000):
            begun = time.perf_counter()
            logger.log_metrics({"loss": 0.5}, step)
            took.append(time.perf_counter() - begun)
        assert statistics.median(took) < 1e-3
        hanging.answers.set()
    assert [step for step, _ in hanging.scalars("loss")] == list(range(2000))
    assert logger.failures == []
