"""The sub-command `health` of launch/benchmark.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path

import benchmarks.health as package
from benchmarks.health.catalogue import RunSpec, all_runs
from benchmarks.health.traces import FOLDER


def main(argv: Sequence[str]) -> int:
    """Record, or replay and print the tables."""
    options = _parser().parse_args(argv)
    if options.record:
        return _record(chosen(all_runs(), options.runs), Path(options.traces))
    raise SystemExit("replay is not written yet")


def chosen(runs: Iterable[RunSpec], patterns: Sequence[str]) -> list[RunSpec]:
    """Return the runs whose name matches one of the patterns; all of them where there is none."""
    return [run for run in runs if not patterns or any(fnmatch(run.name, pattern) for pattern in patterns)]


def _record(runs: Sequence[RunSpec], folder: Path) -> int:
    from benchmarks.health.progress import bar
    from benchmarks.health.recorder import missing, record_all

    left = missing(runs, folder)
    with bar(len(runs), len(runs) - len(left)) as advance:
        failed = record_all(left, folder, advance)
    if failed:
        print(f"{len(failed)} runs failed and have no trace: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmark.py health",
        description=package.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--record", action="store_true", help="train the runs that have no trace yet, and store their traces")
    add("--held-out", action="store_true", help="replay the runs that are held out, instead of the others")
    add("--traces", default=str(FOLDER), help="folder of the traces (default tests/health/traces)")
    add("--out", default="results/benchmarks", help="folder of health.md and health.png")
    add("runs", nargs="*", help="names of runs, with * and ?; default: all")
    return parser
