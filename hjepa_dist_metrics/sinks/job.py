"""Attempts of one elastic job: a launcher that starts the processes again goes on in the same run.

torchrun gives every attempt of a job the same TORCHELASTIC_RUN_ID. Where an attempt dies before its first
checkpoint, the next one begins anew, but it is the same run and no `run-2`. An id may be used again for
another job (`--rdzv-id run1` in a script), so that it is not enough: the attempt that claimed the name must
be dead, and of the same launcher or counted as an earlier one.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

_MARK = ".torchelastic.json"


@dataclass(frozen=True)
class Attempt:
    """Hold which process of which attempt of which job claimed a run's name."""

    job: str
    attempt: int
    host: str
    launcher: int
    process: int

    @classmethod
    def current(cls) -> Attempt | None:
        """Return this process's attempt; None where no elastic launcher started it."""
        job = os.environ.get("TORCHELASTIC_RUN_ID", "none")
        if job == "none" or "TORCHELASTIC_RESTART_COUNT" not in os.environ:
            return None
        attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        return cls(job, attempt, socket.gethostname(), os.getppid(), os.getpid())

    def follows(self, earlier: Attempt) -> bool:
        """Return whether this process goes on with what `earlier` began and did not finish."""
        if self.job != earlier.job:
            return False
        if self.host != earlier.host:
            return self.attempt > earlier.attempt
        same_launcher = self.launcher == earlier.launcher
        return (same_launcher or self.attempt > earlier.attempt) and not _is_alive(earlier.process)


def mark(directory: Path) -> None:
    """Write into a run's directory which attempt has claimed it; nothing without an elastic launcher."""
    attempt = Attempt.current()
    if attempt is not None:
        with contextlib.suppress(OSError):  # the sinks say what is wrong with the place
            (directory / _MARK).write_text(json.dumps(asdict(attempt)), encoding="utf-8")


def join(directory: Path) -> bool:
    """Take over a run's directory where an earlier attempt of this job left it; return whether that is so.

    Of several processes that try, one succeeds: the one that moves the mark away. It looks again at what it
    moved, because a quicker one may have left its own mark there, and puts that back.
    """
    attempt = Attempt.current()
    earlier = _read(directory / _MARK)
    if attempt is None or earlier is None or not attempt.follows(earlier):
        return False
    moved = directory / f"{_MARK}.{uuid.uuid4().hex}"
    try:
        os.rename(directory / _MARK, moved)
    except OSError:
        return False
    if _read(moved) != earlier:
        os.rename(moved, directory / _MARK)
        return False
    mark(directory)
    moved.unlink(missing_ok=True)
    return True


def _read(path: Path) -> Attempt | None:
    try:
        return Attempt(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
