"""Run tests/cuda, and read what pytest wrote about each test."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

from gpu_check.section import Section, last_lines, python, run

# The repository's settings ask for plug-ins that a machine may lack, and make a torch's warnings errors.
_SETTINGS = ("-o", "addopts=", "-o", "filterwarnings=default", "-p", "no:cacheprovider", "-q", "-rs")


def check(root: Path, out: Path, limit: float, rehearsal: bool) -> Section:
    """Run the tests; `out` gets their log and junit's file."""
    results, log = out / "tests.xml", out / "tests.log"
    results.unlink(missing_ok=True)
    command = python("-m", "pytest", *_SETTINGS, f"--junitxml={results}", str(root / "tests/cuda"))
    ended = run(command, limit, str(log), {"HJEPA_CUDA_REHEARSAL": str(int(rehearsal))})
    if ended.code is None:
        return Section("tests", "failed", ended.seconds, f"not done after {limit:.0f} s; see {log}")
    if not results.exists():
        return Section("tests", "failed", ended.seconds, f"{last_lines(ended.output)}; see {log}")
    cases = read(results)
    counts = Counter(case["status"] for case in cases)
    failed = [case["name"] for case in cases if case["status"] == "failed"]
    detail = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    if failed:
        detail += f" ({', '.join(failed[:5])}{', ...' if len(failed) > 5 else ''}; see {log})"
    passed = ended.code == 0 and counts["passed"] > 0
    return Section("tests", "passed" if passed else "failed", ended.seconds, detail, {"cases": cases})


def read(results: Path) -> list[dict[str, Any]]:
    """Return name, file, status, seconds, reason and recorded properties of each test of a junit file."""
    return [_case(case) for case in ElementTree.parse(results).getroot().iter("testcase")]


def _case(case: ElementTree.Element) -> dict[str, Any]:
    status, reason = "passed", ""
    for tag, name in (("skipped", "skipped"), ("failure", "failed"), ("error", "failed")):
        outcome = case.find(tag)
        if outcome is not None:
            status, reason = name, outcome.get("message", "")
    return {
        "file": case.get("classname", "").rpartition(".")[2],
        "name": case.get("name", ""),
        "status": status,
        "seconds": float(case.get("time", 0.0)),
        "reason": reason,
        "properties": {p.get("name", ""): p.get("value", "") for p in case.iter("property")},
    }
