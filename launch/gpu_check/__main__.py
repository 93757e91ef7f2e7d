"""Check the package on this machine's GPU: bash launch/gpu_check.sh [--minutes 6] [--cpu] [--out FOLDER]."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gpu_check import benchmark, machine, racecheck, tests
from gpu_check.section import Section

ROOT = Path(__file__).resolve().parents[2]
_DESCRIPTION = """\
Run the CUDA tests, pinned copies under compute-sanitizer, and launch/benchmark.py gpu; print one table and
write gpu_check.json. Nothing is installed and nothing fetched: what is missing is said, and goes unchecked.
"""
_LEAST_MINUTES = 1.0
_SHARE_OF_TESTS, _SHARE_OF_RACECHECK = 0.55, 0.12  # of the time, at most; the benchmark gets the rest


def main(argv: Sequence[str]) -> int:
    """Run all parts; return 0 where none failed."""
    options = _parser().parse_args(argv)
    lacking = machine.missing(machine.NEEDED)
    if lacking:
        return _refuse(
            f"the checks need {', '.join(lacking)}: install them, or point PYTHON to where they are"
        )
    if not options.cpu and not torch.cuda.is_available():
        return _refuse("no GPU: torch.cuda.is_available() is False; --cpu rehearses everything on the host")
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    ended = time.monotonic() + 60.0 * options.minutes
    found = machine.describe(torch.device("cpu") if options.cpu else torch.device("cuda", 0))
    print(_introduction(found), flush=True)
    sections = _sections(out, ended, options.cpu)
    text = f"{_introduction(found)}\n\n{table(sections)}\n"
    (out / "gpu_check.md").write_text(text, encoding="utf-8")
    record = {"machine": found, "sections": [asdict(section) for section in sections]}
    (out / "gpu_check.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    print(table(sections))
    print(f"\nAll numbers: {out / 'gpu_check.json'}")
    return int(any(section.status == "failed" for section in sections))


def _sections(out: Path, ended: float, rehearsal: bool) -> list[Section]:
    whole = ended - time.monotonic()
    found = [tests.check(ROOT, out, _SHARE_OF_TESTS * whole, rehearsal)]
    found.append(racecheck.check(out, _SHARE_OF_RACECHECK * whole, rehearsal))
    found.append(benchmark.check(ROOT, out, max(10.0, ended - time.monotonic()), rehearsal))
    return found


def _introduction(found: dict[str, Any]) -> str:
    named = ("capability", "memory, GiB", "cuda", "nccl", "torch", "python", "package")
    facts = ", ".join(f"{name} {found[name]}" for name in named if name in found)
    without = [f"{name} (unchecked: {use})" for name, use in found["missing"].items()]
    return f"{found['device']}: {facts}\nmissing: {', '.join(without) or 'nothing'}"


def table(sections: Sequence[Section]) -> str:
    """Return the table: a row for each part, for each file of tests, and for what tests recorded."""
    rows = [("check", "result", "seconds", "detail"), ("---", "---", "---:", "---")]
    for section in sections:
        rows.append((section.name, section.status, f"{section.seconds:.0f}", section.detail))
        rows += _files(section.data.get("cases", []))
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows)


def _files(cases: Sequence[dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    rows = []
    for file in dict.fromkeys(case["file"] for case in cases):
        own = [case for case in cases if case["file"] == file]
        failed = sum(case["status"] == "failed" for case in own)
        passed = sum(case["status"] == "passed" for case in own)
        recorded = [f"{name}: {value}" for case in own for name, value in case["properties"].items()]
        seconds = sum(case["seconds"] for case in own)
        detail = "; ".join([f"{passed} of {len(own)} passed", *recorded])
        rows.append((f"- {file}", "failed" if failed else "passed", f"{seconds:.0f}", detail))
    return rows


def _refuse(text: str) -> int:
    print(f"gpu_check: error: {text}", file=sys.stderr)
    return 2


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not _LEAST_MINUTES <= minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"expected minutes, {_LEAST_MINUTES:g} or more, got {text!r}")
    return minutes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpu_check.sh", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=_minutes, default=6.0, help="time for everything (default 6)")
    parser.add_argument("--cpu", action="store_true", help="rehearse every line on the host, at tiny sizes")
    parser.add_argument("--out", default="results/gpu_check", help="folder of what is written")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
