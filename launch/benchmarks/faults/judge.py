"""What became of a run with a fault: held, or in which way it did not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.faults.cases import FAULT_AT, ROWS, SYNCS, Fault, expected_mean

HELD, HANG, WRONG_NUMBER, WRONG_ERROR = "held", "hangs", "wrong numbers", "wrong errors"
VERDICTS = (HELD, HANG, WRONG_NUMBER, WRONG_ERROR)
_RANKS_NAMED = ("RankFailureError", "SyncTimeoutError")


def judge(fault: Fault, world_size: int, victim: int, answers: Mapping[int, Mapping[str, Any]]) -> str:
    """Return the verdict on a run by what its ranks answered."""
    survivors = set(range(world_size)) - ({victim} if fault.silent else set())
    if not survivors <= set(answers):
        return HANG
    if any(not _right(answers[rank], world_size) for rank in survivors):
        return WRONG_NUMBER
    if not fault.errors:
        done = all(len(answers[rank]["values"]) == SYNCS and not answers[rank]["error"] for rank in survivors)
        return HELD if done else WRONG_ERROR
    learnt = all(_learnt(fault, victim, answers[rank]) for rank in survivors if not answers[rank]["left"])
    return HELD if learnt else WRONG_ERROR


def _right(answer: Mapping[str, Any], world_size: int) -> bool:
    """Return whether each value of a completed sync is what it must be, and none comes after the fault."""
    means = [expected_mean(world_size, sync) for sync in range(len(answer["values"]))]
    rows = [float(ROWS * world_size * (sync + 1)) for sync in range(len(answer["rows"]))]
    return _close(answer["values"], means) and answer["rows"] == rows


def _close(found: Iterable[float], expected: Iterable[float]) -> bool:
    return all(abs(one - other) <= 1e-12 * abs(other) for one, other in zip(found, expected, strict=True))


def _learnt(fault: Fault, victim: int, answer: Mapping[str, Any]) -> bool:
    """Return whether a rank has got an error of the right kind, at the fault, that names the victim."""
    if answer["error"] not in fault.errors or len(answer["values"]) != FAULT_AT:
        return False
    named = answer["ranks"] == (victim,) if answer["error"] in _RANKS_NAMED else False
    return named or f"rank {victim}" in answer["text"] or f"[{victim}]" in answer["text"]
