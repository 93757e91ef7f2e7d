"""Tables of a replay in Markdown, and the plot of detection over delay."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks._ranks import markdown, median
from benchmarks.health.baselines import SingleMetric
from benchmarks.health.replay import FailingRun, HealthyRun, Result
from hjepa_dist_metrics import MissingExtraError

_LONGEST = 15


def share(flags: Sequence[bool]) -> str:
    """Return a share in percent."""
    return f"{100 * sum(flags) / len(flags):.0f} %" if flags else "-"


def failures_table(failing: Sequence[FailingRun]) -> str:
    """Return a line for each failure."""
    groups: dict[tuple[str, str], list[FailingRun]] = defaultdict(list)
    for run in failing:
        groups[run.trace.run["expect"], run.trace.run["failure"]].append(run)
    head = ["failure", "finding", "runs", "noticed", "named", "in time", "delay, median", "worst", "headline"]
    rows = [
        [
            failure,
            expected,
            str(len(runs)),
            share([run.noticed is not None for run in runs]),
            share([run.named is not None for run in runs]),
            share([run.in_time for run in runs]),
            *_delays(runs),
            share([run.headline for run in runs]),
        ]
        for (expected, failure), runs in groups.items()
    ]
    return markdown(head, rows)


def _delays(runs: Sequence[FailingRun]) -> tuple[str, str]:
    delays = [max(run.named, 0) for run in runs if run.named is not None]
    return (f"{median(delays):g}", str(max(delays))) if delays else ("-", "-")


def recipes_table(healthy: Sequence[HealthyRun]) -> str:
    """Return a line for each healthy recipe."""
    groups: dict[str, list[HealthyRun]] = defaultdict(list)
    for run in healthy:
        groups[run.trace.run["recipe"]].append(run)
    rows = [
        [
            recipe,
            str(len(runs)),
            str(sum(len(run.trace.logs) for run in runs)),
            f"{_per_thousand(runs):.1f}",
            str(sum(bool(run.alarms) for run in runs)),
            ", ".join(dict.fromkeys(name for run in runs for name in run.alarms)),
        ]
        for recipe, runs in groups.items()
    ]
    return markdown(["healthy", "runs", "logs", "alarmed logs of 1,000", "runs with any", "which"], rows)


def _per_thousand(runs: Sequence[HealthyRun]) -> float:
    return 1000 * sum(run.alarmed_logs for run in runs) / max(sum(len(run.trace.logs) for run in runs), 1)


def comparison_table(results: Mapping[str, Result], single: Sequence[SingleMetric]) -> str:
    """Return a line for each judge and for the best numbers by themselves."""
    head = [
        "judge",
        "noticed",
        "named",
        "in time",
        "headline",
        "healthy runs with alarms",
        "alarmed logs of 1,000",
    ]
    rows = [
        [
            name,
            share([run.noticed is not None for run in result.failing]),
            share([run.named is not None for run in result.failing]),
            share([run.in_time for run in result.failing]),
            share([run.headline for run in result.failing]),
            share([bool(run.alarms) for run in result.healthy]),
            f"{_per_thousand(result.healthy):.1f}",
        ]
        for name, result in results.items()
    ]
    rows += [
        [
            f"`{metric.tag}` {metric.side} {metric.threshold:.3g}",
            f"{100 * metric.detected:.0f} %",
            *["-"] * 3,
            f"{100 * metric.alarmed:.0f} %",
            "-",
        ]
        for metric in single
    ]
    return markdown(head, rows)


def details(failing: Sequence[FailingRun], healthy: Sequence[HealthyRun]) -> str:
    """Return a line for each run that was not judged rightly."""
    lines = []
    for run in failing:
        if not (run.in_time and run.headline) or run.early:
            delay = "never" if run.named is None else f"{run.named:+d} logs"
            lines.append(
                f"- {run.trace.name}: planted at {run.trace.run['planted_at']}, "
                f"visible at {run.truth.visible}, "
                f"{run.trace.run['expect']} {delay}; others {', '.join(run.instead) or 'none'}"
                + (f"; too early {', '.join(run.early)}" if run.early else "")
            )
    lines += [f"- {run.trace.name}: {', '.join(run.alarms)}" for run in healthy if run.alarms]
    return "\n".join(lines)


def plot(results: Mapping[str, Result], folder: str) -> Path:
    """Draw the share of failing runs that are named within so many logs; write health.png."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("matplotlib", "bench", "The plot (leave it out with --no-plot)") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    delays = range(_LONGEST + 1)
    for name, result in results.items():
        runs = result.failing
        named = [sum(r.named is not None and r.named <= d for r in runs) / max(len(runs), 1) for d in delays]
        axes.step(delays, [100 * part for part in named], where="post", label=name)
    axes.set(xlabel="logs after the failure was visible", ylabel="failing runs named, %", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path = Path(folder) / "health.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    return path
