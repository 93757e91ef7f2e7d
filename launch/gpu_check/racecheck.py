"""Run pinned copies and streams under compute-sanitizer, where it is there and takes the device."""

from __future__ import annotations

import shutil
from pathlib import Path

from gpu_check.section import Section, last_lines, python, run

_HAZARDS = 9  # its exit code where it found any
_NAME = "racecheck"


def check(out: Path, limit: float, rehearsal: bool) -> Section:
    """Return what the sanitizer says; skipped, with its reason, where it is missing or does not run."""
    tool = shutil.which("compute-sanitizer")
    program = python("-m", "gpu_check.streams", "cpu" if rehearsal else "cuda")
    log = out / "racecheck.log"
    if tool is None or rehearsal:
        ended = run(program, limit, str(log), {})
        if ended.code != 0:
            why = f"not done after {limit:.0f} s" if ended.code is None else last_lines(ended.output)
            return Section(_NAME, "failed", ended.seconds, f"{why}; see {log}")
        reason = "a rehearsal" if rehearsal else "compute-sanitizer is not on the PATH"
        return Section(_NAME, "skipped", ended.seconds, f"{reason}; the program itself passed")
    options = ("--tool", "racecheck", "--target-processes", "all", "--error-exitcode", str(_HAZARDS))
    ended = run([tool, *options, *program], limit, str(log), {})
    summary = last_lines(ended.output, 1)
    if ended.code == _HAZARDS:
        return Section(_NAME, "failed", ended.seconds, f"hazards: {summary}; see {log}")
    if ended.code == 0 and "RACECHECK SUMMARY" in ended.output:
        return Section(_NAME, "passed", ended.seconds, summary)
    reason = f"not done after {limit:.0f} s" if ended.code is None else summary
    return Section(_NAME, "skipped", ended.seconds, f"compute-sanitizer did not run: {reason}; see {log}")
