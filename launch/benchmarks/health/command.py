"""The sub-command `health` of launch/benchmark.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path

import benchmarks.health as package
from benchmarks.health.catalogue import RunSpec, all_runs
from benchmarks.health.traces import FOLDER, load_traces
from hjepa_dist_metrics import ConfigError

# Numbers by themselves that the table shows.
_BEST = 8


def main(argv: Sequence[str]) -> int:
    """Record, or replay and print the tables."""
    options = _parser().parse_args(argv)
    if options.record:
        return _record(chosen(all_runs(), options.runs), Path(options.traces))
    return _replay(options)


def _replay(options: argparse.Namespace) -> int:
    """Judge the traces by the package's judge and by what it is compared with; write health.md."""
    from benchmarks._ranks import median, milliseconds, write
    from benchmarks.health import report
    from benchmarks.health.baselines import FixedThresholds, PreviousRules, single_metrics
    from benchmarks.health.oracle import has_twin, twins
    from benchmarks.health.replay import PackageJudge, Verdicts, replay

    folder = Path(options.traces)
    tuning, held_out = load_traces(folder=folder), load_traces(held_out=True, folder=folder)
    traces = [t for t in (held_out if options.held_out else tuning) if matches(t.name, options.runs)]
    complete = [t for t in traces if has_twin(t, twins([*tuning, *held_out]))]
    if left := len(traces) - len(complete):
        print(f"{left} failing runs are left out: the healthy runs that they compare with are not recorded")
    traces = complete
    if not traces:
        raise ConfigError(f"{folder} holds none of these traces: record them with --record first")
    judges: dict[str, Callable[[], Verdicts]] = {
        "judge": PackageJudge,
        "previous rules": PreviousRules,
        "fixed thresholds": FixedThresholds,
    }
    results = {name: replay(traces, [*tuning, *held_out], make) for name, make in judges.items()}
    ours = results["judge"]
    parts = [
        report.failures_table(ours.failing),
        report.recipes_table(ours.healthy),
        report.comparison_table(results, single_metrics(traces)[:_BEST]),
        f"The judge takes {milliseconds(median(PackageJudge.seconds))} ms a log, at the median.",
    ]
    text = "\n\n".join([*parts, report.details(ours.failing, ours.healthy)] if options.details else parts)
    print(text)
    write(options.out, "health.md", text)
    if not options.no_plot:
        report.plot(results, options.out)
    return 0


def chosen(runs: Iterable[RunSpec], patterns: Sequence[str]) -> list[RunSpec]:
    """Return the runs whose name matches one of the patterns; all of them where there is none."""
    return [run for run in runs if matches(run.name, patterns)]


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a name matches one of the patterns, or there is none."""
    return not patterns or any(fnmatch(name, pattern) for pattern in patterns)


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
    add("--details", action="store_true", help="name every run that is not judged rightly")
    add("--no-plot", action="store_true", help="draw no plot")
    add("--traces", default=str(FOLDER), help="folder of the traces (default tests/health/traces)")
    add("--out", default="results/benchmarks", help="folder of health.md and health.png")
    add("runs", nargs="*", help="names of runs, with * and ?; default: all")
    return parser
