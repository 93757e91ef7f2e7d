"""Who is blamed for a broken sync: pure logic over a store and a clock that tests move by hand."""

from __future__ import annotations

from collections import Counter

from hjepa_dist_metrics import RankFailureError, SyncTimeoutError
from hjepa_dist_metrics.distributed.arrivals import ArrivalBoard, first_line

CLOSED = "Connection closed by peer [127.0.0.1]:1"
TIMED_OUT = "Timed out waiting 2000ms for recv operation to complete"


class World:
    """A store, a clock, and what happens at given times."""

    def __init__(self, ranks: tuple[int, ...] = (0, 1, 2)) -> None:
        self.counts: Counter[str] = Counter()
        self.now = 100.0
        self.events: list[tuple[float, int, str]] = []
        self.broken = False
        self.boards = [
            ArrivalBoard(self, "p", ranks, place, 2.0, clock=lambda: self.now, sleep=self.sleep)
            for place in range(len(ranks))
        ]

    def add(self, key: str, amount: int) -> int:
        if self.broken:
            raise RuntimeError("Broken pipe")
        self.counts[key] += amount
        return self.counts[key]

    def set(self, key: str, value: str) -> None:
        if self.broken:
            raise RuntimeError("Broken pipe")
        self.counts[key] = int(value)

    def at(self, seconds: float, place: int, what: str) -> None:
        """Let a rank post `what` some seconds from now."""
        self.events.append((self.now + seconds, place, what))

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds
        due = [event for event in self.events if event[0] <= self.now]
        self.events = [event for event in self.events if event[0] > self.now]
        for _, place, what in due:
            self.add(f"p/{what}/{place}", 1)


def come(board: ArrivalBoard) -> None:
    board.arrive()
    board.post()


def test_the_rank_that_did_not_come_is_named_and_everybody_says_the_same():
    world = World()
    for place in (0, 1):
        come(world.boards[place])
    world.now += 2.0
    first = world.boards[0].explain(TIMED_OUT, 100.0)
    second = world.boards[1].explain(CLOSED, 100.5)
    come(world.boards[2])
    late = world.boards[2].explain(CLOSED, world.now)
    assert isinstance(first, SyncTimeoutError)
    assert first.ranks == (2,)
    assert str(first) == str(second) == str(late)


def test_a_dead_rank_is_named_and_a_slow_one_gets_its_time():
    world = World()
    come(world.boards[0])
    world.at(1.0, 1, "arrived")
    error = world.boards[0].explain(CLOSED, 100.0)
    assert isinstance(error, RankFailureError)
    assert error.ranks == (2,)
    assert str(error).startswith("rank 2 ended before metrics sync 1")
    assert 102.0 <= world.now <= 103.0


def test_a_rank_that_dies_after_arriving_is_the_one_that_reports_no_failure():
    world = World()
    for board in world.boards:
        come(board)
    world.at(0.2, 1, "failed")
    error = world.boards[0].explain(CLOSED, 100.0)
    assert isinstance(error, RankFailureError)
    assert error.ranks == (2,)
    assert "went away in the middle of metrics sync 1" in str(error)


def test_a_rank_that_went_on_to_the_next_sync_is_not_accused():
    world = World()
    for board in world.boards:
        come(board)
    world.at(0.1, 1, "arrived")
    assert world.boards[0].explain(CLOSED, 100.0).ranks == (2,)  # type: ignore[attr-defined]


def test_all_report_a_failure_when_only_the_network_broke():
    world = World()
    for board in world.boards:
        come(board)
    for place in (1, 2):
        world.at(0.1, place, "failed")
    error = world.boards[0].explain("no route to host", 100.0)
    assert isinstance(error, RankFailureError)
    assert error.ranks == ()
    assert str(error) == "metrics sync 1 broke on all its ranks (no route to host)"


def test_ranks_are_named_by_their_global_numbers():
    world = World(ranks=(4, 6, 9))
    come(world.boards[0])
    world.now += 2.0
    error = world.boards[0].explain(TIMED_OUT, 100.0)
    assert error.ranks == (6, 9)  # type: ignore[attr-defined]
    assert str(error).startswith("ranks 6, 9 did not arrive at metrics sync 1 within 2 s")


def test_a_store_that_is_gone_is_said_to_be():
    world = World()
    come(world.boards[1])
    world.broken = True
    error = world.boards[1].explain(CLOSED, 100.0)
    assert isinstance(error, RankFailureError)
    assert "key-value store does not answer" in str(error)
    assert "the launcher's agent or rank 0, is gone" in str(error)
    assert "Broken pipe" in str(error)
    assert error.ranks == ()
    world.boards[1].host = 4
    known = world.boards[1].explain(CLOSED, 100.0)
    assert known.ranks == (4,)
    assert "the process that hosts it, rank 4, is gone" in str(known)


def test_a_sync_is_posted_once_and_at_the_latest_when_it_fails():
    world = World()
    come(world.boards[1])
    world.boards[1].post()
    assert world.counts["p/arrived/1"] == 1
    world.boards[0].arrive()
    world.now += 2.0
    error = world.boards[0].explain(TIMED_OUT, 100.0)
    assert world.counts["p/arrived/0"] == 1
    assert error.ranks == (2,)  # type: ignore[attr-defined]


def test_the_wait_for_the_others_conclusions_is_short():
    world = World()
    for place in (0, 1):
        come(world.boards[place])
    world.now += 2.0
    world.boards[0].explain(TIMED_OUT, 100.0)
    assert world.now <= 103.0


def test_the_first_cause_of_a_chain_of_errors_is_told():
    second = ValueError("second")
    second.__context__ = RuntimeError("first\nwith a trace")
    assert first_line(second) == "first"
    assert first_line(RuntimeError()) == "RuntimeError"


def test_a_live_rank_that_failed_a_sync_earlier_is_not_blamed():
    """Rank 1 is killed amid sync 1; rank 0 fails on it there, rank 2 got through and fails at sync 2."""
    world = World()
    for place in (0, 1, 2):
        come(world.boards[place])
    world.at(0.1, 0, "failed")
    come(world.boards[2])
    error = world.boards[2].explain(CLOSED, world.now)
    assert isinstance(error, RankFailureError)
    assert error.ranks == (1,)
