"""One part of the check: a process of its own, within a limit of time, so that no part costs the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["passed", "failed", "skipped"]


@dataclass
class Section:
    """Hold what a part found."""

    name: str
    status: Status
    seconds: float
    detail: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """Hold how a process ended; `code` is None where it ran out of time and was killed."""

    code: int | None
    seconds: float
    output: str


def run(command: Sequence[str], limit: float, log: str, environment: Mapping[str, str]) -> Ended:
    """Run a command for at most `limit` seconds, its output in the file `log`; kill what it leaves behind."""
    begun = time.monotonic()
    with open(log, "w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        code: int | None
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
        output.seek(0)
        return Ended(code, time.monotonic() - begun, output.read())


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the processes of a session that was started here."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def python(*arguments: str) -> list[str]:
    """Return a command of this interpreter."""
    return [sys.executable, *arguments]


def last_lines(text: str, count: int = 3) -> str:
    """Return the last lines that are not empty, in one."""
    return " / ".join([line.strip() for line in text.splitlines() if line.strip()][-count:])
