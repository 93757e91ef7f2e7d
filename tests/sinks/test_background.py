"""The writing thread: order, back-pressure, and no loss however the process ends."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from hjepa_dist_metrics.sinks import BackgroundSink, MemorySink, read_jsonl
from hjepa_dist_metrics.values import Scalar

# What a write of one number takes in a queue.
WRITE = 576


class GatedSink(MemorySink):
    """Write only while the gate is open."""

    def __init__(self):
        super().__init__()
        self.gate, self.threads = threading.Event(), set()

    def write(self, step, values, wall_time=None):
        self.gate.wait()
        self.threads.add(threading.current_thread().name)
        super().write(step, values, wall_time)


@pytest.fixture
def gated():
    inner = GatedSink()
    sink = BackgroundSink(inner, capacity=1000 * WRITE)
    yield inner, sink
    inner.gate.set()
    sink.close()


def write(sink, steps):
    for step in steps:
        sink.write(step, {"a": Scalar(float(step))})


def test_writes_keep_order_and_flush_waits_for_them(gated):
    inner, sink = gated
    inner.gate.set()
    write(sink, range(100))
    assert sink.drain()
    assert inner.scalars("a") == [(step, float(step)) for step in range(100)]
    assert inner.flushes == 1
    assert inner.threads == {"hjepa-metrics-writer"}


def test_a_flush_that_takes_too_long_says_so(gated, caplog):
    inner, sink = gated
    write(sink, [0])
    assert not sink.drain(timeout=0.01)
    assert "did not finish within 0.01 s" in caplog.text
    inner.gate.set()
    assert sink.drain()
    assert inner.scalars("a") == [(0, 0.0)]


def test_values_are_stamped_and_copied_when_written(gated):
    inner, sink = gated
    values = {"a": Scalar(1.0)}
    start = time.time()
    sink.write(0, values)
    written = time.time()
    values["a"] = Scalar(2.0)
    inner.gate.set()
    sink.flush()
    assert inner.scalars("a") == [(0, 1.0)]
    assert start <= inner.records[0].wall_time <= written


def test_close_drains_and_a_later_write_does_nothing():
    inner = MemorySink()
    sink = BackgroundSink(inner)
    sink.write_hparams({"lr": 0.1}, ["a"])
    write(sink, range(50))
    sink.write_status(False)
    sink.close()
    sink.close()
    write(sink, [50])
    sink.flush()
    assert inner.scalars("a") == [(step, float(step)) for step in range(50)]
    assert (inner.closed, inner.hparams, inner.hparam_metrics, inner.success) == (
        True,
        {"lr": 0.1},
        ("a",),
        False,
    )


def test_a_failing_sink_is_reported_and_the_caller_goes_on(caplog):
    class Failing(MemorySink):
        def write(self, step, values, wall_time=None):
            raise OSError(28, "No space left on device")

    sink = BackgroundSink(Failing(), capacity=2 * WRITE)
    write(sink, range(20))
    sink.close()
    (message,) = caplog.messages
    assert "No space left on device" in message
    assert sink.failures == [message]


def test_a_forked_child_writes_nothing(gated):
    inner, sink = gated
    inner.gate.set()
    sink._guard._pid += 1
    write(sink, range(20))
    assert sink.drain()
    sink.close()
    sink._guard._pid -= 1
    sink.flush()
    assert inner.records == []


@pytest.fixture
def default_sigint():
    """A suite started in the background inherits a SIGINT that is ignored; a training job need not."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("default_sigint")
def test_signals_are_taken_and_given_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    sink = BackgroundSink(MemorySink())
    assert all(signal.getsignal(number) not in before for number in (signal.SIGTERM, signal.SIGINT))
    sink.close()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_handler_of_the_user_still_runs_and_training_goes_on():
    seen = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(list(inner.scalars("a"))))
    try:
        inner = MemorySink()
        sink = BackgroundSink(inner)
        write(sink, [0])
        signal.raise_signal(signal.SIGTERM)
        write(sink, [1])
        sink.close()
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert seen == [[(0, 0.0)]]
    assert inner.scalars("a") == [(0, 0.0), (1, 1.0)]


def test_another_thread_leaves_the_signals_alone():
    before = signal.getsignal(signal.SIGTERM)

    def use():
        sink = BackgroundSink(MemorySink())
        handlers.append(signal.getsignal(signal.SIGTERM))
        sink.close()

    handlers = []
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert handlers == [before]


PROGRAM = """
import os, signal, sys, time
from hjepa_dist_metrics.sinks import BackgroundSink, JsonlSink, SinkGroup
from hjepa_dist_metrics.values import Scalar

signal.signal(signal.SIGINT, signal.default_int_handler)  # the suite may run where it is ignored

class Slow(JsonlSink):
    def write(self, step, values, wall_time=None):
        time.sleep(0.0005)
        super().write(step, values, wall_time)

sink = BackgroundSink(Slow(sys.argv[1]), capacity=100_000_000)
def log(steps):
    for step in steps:
        sink.write(step, {"a": Scalar(float(step))})
"""


def run(tmp_path, body):
    path = tmp_path / "x.jsonl"
    command = [sys.executable, "-c", PROGRAM + body, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done, [record["step"] for record in read_jsonl(path)]


@pytest.mark.parametrize(
    ("ending", "code", "stderr"),
    [
        ("", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("raise RuntimeError('boom')", 1, "boom"),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", -signal.SIGTERM, ""),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(60)", -signal.SIGINT, "KeyboardInterrupt"),
    ],
    ids=["end of the program", "sys.exit", "exception", "SIGTERM", "SIGINT"],
)
def test_nothing_is_lost(tmp_path, ending, code, stderr):
    done, steps = run(tmp_path, f"log(range(500))\n{ending}\n")
    assert done.returncode == code, done.stderr
    assert stderr in done.stderr
    assert steps == list(range(500))


def test_sigterm_in_the_middle_of_writing_loses_nothing_written_before(tmp_path):
    body = """
import threading
count = 0
def stop(number, frame):
    print(count, flush=True)
    os._exit(0)
sink.close()
signal.signal(signal.SIGTERM, stop)
sink = BackgroundSink(JsonlSink(sys.argv[1]), capacity=8_000_000)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
while True:
    sink.write(count, {"a": Scalar(1.0)})
    count += 1
"""
    done, steps = run(tmp_path, body)
    assert done.returncode == 0, done.stderr
    logged = int(done.stdout)
    assert logged > 0
    assert steps[:logged] == list(range(logged))
    assert len(steps) <= logged + 1


def test_after_sigkill_the_file_still_reads_up_to_the_last_flush(tmp_path):
    body = "log(range(300)); sink.flush(); log(range(300, 5000)); os.kill(os.getpid(), signal.SIGKILL)"
    done, steps = run(tmp_path, body)
    assert done.returncode == -signal.SIGKILL
    assert steps == list(range(len(steps)))
    assert len(steps) >= 300


def test_a_real_fork_writes_nothing_and_the_parent_everything(tmp_path):
    body = """
log(range(200))
child = os.fork()
log(range(1000, 1200) if child == 0 else range(200, 400))
sink.flush()
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    done, steps = run(tmp_path, body)
    assert done.returncode == 0, done.stderr
    assert steps == list(range(400))


def test_event_files_survive_sigterm(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    code = """
import os, signal, sys, time
from hjepa_dist_metrics.sinks import BackgroundSink, TensorBoardSink
from hjepa_dist_metrics.values import Scalar
sink = BackgroundSink(TensorBoardSink(sys.argv[1], flush_secs=1000))
for step in range(2000):
    sink.write(step, {"a": Scalar(float(step))})
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(60)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=False, timeout=120, capture_output=True
    )
    assert done.returncode == -signal.SIGTERM, done.stderr
    accumulator = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in accumulator.Scalars("a")] == list(range(2000))
