"""A place that does not answer is asked again for a while; what is wrong with a value is not."""

import pytest

from hjepa_dist_metrics.sinks import MemorySink, Retrying, SinkGroup
from hjepa_dist_metrics.sinks.lanes import retrying
from hjepa_dist_metrics.values import Scalar


class Flaky(MemorySink):
    """Fail a number of times with one error."""

    def __init__(self, failures, error):
        super().__init__()
        self.left, self.error, self.calls = failures, error, 0

    def write(self, step, values, wall_time=None):
        self.calls += 1
        if self.left:
            self.left -= 1
            raise self.error
        super().write(step, values, wall_time)


@pytest.fixture
def clock(monkeypatch):
    """Let waits pass at once: `clock[0]` is the time."""
    now = [0.0]

    def wait(seconds, *_):
        now[0] += seconds

    monkeypatch.setattr(retrying.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(retrying.time, "sleep", wait)
    monkeypatch.setattr(retrying.threading.Event, "wait", lambda self, seconds=None: wait(seconds))
    return now


def test_it_waits_longer_each_time_and_loses_nothing(clock, caplog):
    flaky = Flaky(8, ConnectionError("gone"))
    sink = Retrying("far", lambda: flaky)
    sink.write(3, {"a": Scalar(1.0)})
    assert flaky.scalars("a") == [(3, 1.0)]
    assert clock[0] == 0.5 + 1 + 2 + 4 + 8 + 16 + 30 + 30
    first, last = caplog.messages
    assert "memory does not answer (gone); it is tried again" in first
    assert "memory answers again after 92 s" in last


def test_opening_is_tried_again_too(clock):
    kept, attempts = MemorySink(), []

    def make():
        attempts.append(1)
        if len(attempts) < 4:
            raise TimeoutError("no answer")
        return kept

    sink = Retrying("far", make)
    assert str(sink) == "far"
    sink.write_hparams({"lr": 0.5})
    sink.write_status(True)
    sink.flush()
    sink.close()
    assert (len(attempts), kept.hparams, kept.success, kept.flushes, kept.closed) == (
        4,
        {"lr": 0.5},
        True,
        1,
        True,
    )


def test_it_gives_up_after_its_time_and_the_others_go_on(clock):
    flaky, other = Flaky(10**6, ConnectionError("gone")), MemorySink()
    group = SinkGroup([Retrying("far", lambda: flaky, give_up=100.0), other])
    group.write(0, {"a": Scalar(1.0)})
    group.write(1, {"a": Scalar(1.0)})
    assert clock[0] <= 100.0
    assert len(other.records) == 2
    (failure,) = group.failures
    assert "ConnectionError: gone" in failure


def test_the_end_of_the_run_leaves_it_ten_seconds(clock):
    flaky = Flaky(10**6, ConnectionError("gone"))
    sink = Retrying("far", lambda: flaky)
    sink.hurry()
    with pytest.raises(ConnectionError):
        sink.write(0, {"a": Scalar(1.0)})
    assert 5.0 < clock[0] <= 10.0


def test_a_bad_value_is_not_tried_again(clock):
    flaky = Flaky(1, ValueError("no form"))
    with pytest.raises(ValueError, match="no form"):
        Retrying("far", lambda: flaky).write(0, {"a": Scalar(1.0)})
    assert (flaky.calls, clock[0]) == (1, 0.0)


def test_what_was_never_opened_is_not_opened_to_be_closed():
    sink = Retrying("far", lambda: pytest.fail("opened"))
    sink.flush()
    sink.close()
