"""The command `hjepa-metrics`: arguments only; what the sub-commands do is in `commands`."""

from __future__ import annotations

import argparse
import difflib
import functools
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from hjepa_dist_metrics.errors import MetricsError
from hjepa_dist_metrics.version import __version__

EXIT_OK, EXIT_FINDINGS, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130

FORMATS = ("csv", "jsonl", "parquet", "prometheus")

_LOGDIR = "name of a run, log directory of one or several runs, an event file or a .jsonl file"
_NEWEST = f"{_LOGDIR}; by default the newest run below results, logs, runs and here"
_EXIT_CODES = (
    "exit codes: 0 all well; 1 something was found (an alert, a bad value, runs that part, a failed check); "
    "2 bad input"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and (hint := _unknown(given[0])):
        return _fail(hint)
    options = parser().parse_args(given)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except MetricsError as error:
        return _fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except OSError as error:
        return _fail(str(error))


def parser() -> argparse.ArgumentParser:
    """Return the parser of all sub-commands."""
    top = argparse.ArgumentParser(
        prog="hjepa-metrics",
        description="Look at the logs of training runs, and at the machine that they run on.",
        epilog=_EXIT_CODES,
    )
    top.add_argument("--version", action="version", version=f"hjepa-metrics {__version__}")
    commands = top.add_subparsers(title="sub-commands", metavar="COMMAND", required=True)
    for add in _ADD:
        add(commands)
    return top


def _unknown(name: str) -> str:
    """Return a hint where the first argument is no command."""
    known = [add.__name__.removeprefix("_add_") for add in _ADD]
    if name.startswith("-") or name in known:
        return ""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"there is no command {name!r}; did you mean {near[0]!r}?"
    if Path(name).exists():
        return f"{name!r} is no command; did you mean `hjepa-metrics summary {name}`?"
    return f"there is no command {name!r}; commands: {', '.join(known)}"


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    what: str,
) -> argparse.ArgumentParser:
    added = commands.add_parser(
        name, help=what, description=f"{what[0].upper()}{what[1:]}.", epilog=_EXIT_CODES
    )
    added.set_defaults(run=run)
    return added


def _add_summary(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    added = _add(commands, "summary", _summary, "the verdict on a run, its findings and a dozen numbers")
    added.add_argument("logdir", metavar="LOGDIR", nargs="?", help=_NEWEST)
    added.add_argument("--run", dest="name", metavar="RUN", help="only this run")
    added.add_argument("--all", action="store_true", help="show all findings and all tags")


def _add_watch(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    added = _add(commands, "watch", _watch, "the summary of a run, live, also of a run on another machine")
    added.add_argument("logdir", metavar="LOGDIR", nargs="?", help=_NEWEST)
    added.add_argument(
        "--run", dest="name", metavar="RUN", help="this run; by default the one written to last"
    )
    added.add_argument(
        "--every", type=_seconds, default=5.0, metavar="S", help="seconds in between (default 5)"
    )


def _add_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    added = _add(commands, "compare", _compare, "what parted first between runs, and which settings differ")
    added.add_argument("runs", metavar="RUN", nargs="+", help=f"{_LOGDIR}; the first run is the reference")
    added.add_argument(
        "--tolerance",
        type=float,
        default=0.05,
        metavar="T",
        help="relative difference from which two values count as parted (default 0.05)",
    )
    added.add_argument(
        "--all", action="store_true", help="show all tags, those that part first before the others"
    )


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    added = _add(
        commands, "export", _export, "every scalar as a table with the columns run, tag, step, value"
    )
    added.add_argument("logdir", metavar="LOGDIR", nargs="?", help=_NEWEST)
    added.add_argument(
        "--format", choices=FORMATS, default="csv", help="default csv; prometheus has the last numbers alone"
    )
    added.add_argument("--output", metavar="FILE", help="where to write; by default standard output")
    added.add_argument(
        "--tags", metavar="PATTERN", action="append", default=[], help="only such tags, 'loss/*' for instance"
    )


def _add_grafana(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    added = _add(commands, "grafana", _grafana, "write a Grafana dashboard over what Prometheus has scraped")
    added.add_argument("--output", metavar="FILE", help="where to write; by default standard output")
    added.add_argument(
        "--dashboards", metavar="NAME", nargs="+", help="only these, as logging.dashboards names them"
    )


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    added = _add(commands, "report", _report, "one HTML file: verdict, curves, figures, settings")
    added.add_argument("runs", metavar="RUN", nargs="*", help=f"{_NEWEST}; several are compared")
    added.add_argument("--output", metavar="FILE", default="report.html", help="default report.html")
    added.add_argument("--run", dest="name", metavar="RUN", help="only this run")
    added.add_argument(
        "--refresh",
        type=_seconds,
        metavar="S",
        help="make it anew every so many seconds; the page loads itself",
    )


def _add_explain(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    added = _add(
        commands, "explain", _explain, "what a tag means, its unit, its healthy range and its source"
    )
    added.add_argument(
        "tag", metavar="TAG", help="a tag such as collapse/effective_rank, or a pattern loss/h{i}"
    )


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    added = _add(
        commands, "doctor", _doctor, "check versions, backends, a real all-reduce, write permission and disk"
    )
    added.description = (
        f"{added.description} Start it with the launcher of your job to check that: "
        "torchrun --nproc-per-node 2 -m hjepa_dist_metrics.cli doctor."
    )
    added.add_argument(
        "--log_dir", default="results/logs", help="where runs will write (default results/logs)"
    )
    added.add_argument(
        "--timeout", type=float, default=30.0, help="seconds to wait for the other ranks (default 30)"
    )


def _add_tensorboard(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    added = _add(
        commands, "tensorboard", _board, "start TensorBoard on a log directory, by default the newest"
    )
    added.add_argument(
        "logdir", metavar="LOGDIR", nargs="?", help="log directory; by default the newest logs here"
    )
    added.add_argument("--port", type=int, help="default: the first free port from 6006 on")
    added.add_argument("--host", default="localhost", help="address to serve on (default localhost)")
    added.add_argument(
        "--print", dest="only_print", action="store_true", help="print the command, start nothing"
    )
    added.add_argument(
        "--no-browser", dest="browser", action="store_false", help="open no browser, where there is a display"
    )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text}")
    return seconds


def _summary(options: argparse.Namespace) -> int:
    from hjepa_dist_metrics.commands.runs import find_runs, one_run
    from hjepa_dist_metrics.commands.summary import summarize

    runs = [one_run(options.logdir, options.name)] if options.name else find_runs(options.logdir)
    summaries = [summarize(run, options.all) for run in runs]
    _say("\n\n".join("\n".join(lines) for lines, _ in summaries))
    return EXIT_OK if all(healthy for _, healthy in summaries) else EXIT_FINDINGS


def _watch(options: argparse.Namespace) -> int:
    from hjepa_dist_metrics.commands.runs import newest_run, one_run
    from hjepa_dist_metrics.commands.watch import watch

    load = functools.partial(one_run, options.logdir, options.name)
    healthy = watch(load if options.name else functools.partial(newest_run, options.logdir), options.every)
    return EXIT_OK if healthy else EXIT_FINDINGS


def _compare(options: argparse.Namespace) -> int:
    from hjepa_dist_metrics.commands.compare import compare
    from hjepa_dist_metrics.commands.runs import load_each

    runs = load_each(options.runs)
    if len(runs) < 2:
        return _fail(f"comparing takes two runs or more; found {', '.join(run.name for run in runs)}")
    lines, together = compare(runs, options.tolerance, options.all)
    _say("\n".join(lines))
    return EXIT_OK if together else EXIT_FINDINGS


def _export(options: argparse.Namespace) -> int:
    from hjepa_dist_metrics.commands.export import export
    from hjepa_dist_metrics.commands.runs import find_runs

    export(find_runs(options.logdir), options.tags, options.format, options.output)
    return EXIT_OK


def _report(options: argparse.Namespace) -> int:
    from hjepa_dist_metrics.commands.report import keep_fresh, write_page
    from hjepa_dist_metrics.commands.runs import Run, find_runs, load_each, one_run

    def load() -> list[Run]:
        if options.name:
            return [one_run(options.runs[0] if options.runs else None, options.name)]
        return load_each(options.runs) if options.runs else find_runs(None)

    output = Path(options.output)
    if options.refresh is None:
        write_page(load(), output)
        _say(f"wrote {output}")
        return EXIT_OK
    _say(f"{output} is made anew every {options.refresh:g} s: open it in a browser; Ctrl-C ends this")
    keep_fresh(load, output, options.refresh, _say)
    return EXIT_OK


def _explain(options: argparse.Namespace) -> int:
    from hjepa_dist_metrics import catalog

    _say(catalog.explain(options.tag))
    return EXIT_OK


def _doctor(options: argparse.Namespace) -> int:
    from hjepa_dist_metrics.commands import doctor
    from hjepa_dist_metrics.reference.launch import process

    with process() as context:
        checks = [
            *doctor.environment(),
            doctor.launcher(context),
            doctor.reduction(context, options.timeout),
            *doctor.place(Path(options.log_dir)),
        ]
        if context.is_main:
            _say("\n".join(map(str, checks)))
    return EXIT_FINDINGS if any(check.state == "FAIL" for check in checks) else EXIT_OK


def _board(options: argparse.Namespace) -> int:
    from hjepa_dist_metrics.catalog.headline import pinned_link
    from hjepa_dist_metrics.commands import board

    logs = board.find_logs(options.logdir)
    port = board.free_port(options.host, options.port)
    command = [sys.executable, "-m", "tensorboard.main", *board.server_arguments(logs, options.host, port)]
    link = pinned_link(f"http://{options.host}:{port}")
    _say(f"{logs} at http://{options.host}:{port}/\nHeadline numbers: {link}")
    if options.only_print:
        _say(" ".join(command))
        return EXIT_OK
    if options.browser and board.has_display():
        board.open_when_ready(link, options.host, port)
    os.execv(sys.executable, command)


def _say(text: str, stream: IO[str] | None = None) -> None:
    from hjepa_dist_metrics.commands.terminal import say

    say(text, stream)


def _grafana(options: argparse.Namespace) -> int:
    from hjepa_dist_metrics.catalog.grafana import grafana_dashboard

    text = json.dumps(grafana_dashboard(options.dashboards or "default"), indent=1)
    if options.output is None:
        _say(text)
    else:
        Path(options.output).write_text(text + "\n", encoding="utf-8")
        _say(f"wrote {options.output}: import it in Grafana under Dashboards, New, Import")
    return EXIT_OK


def _fail(message: str) -> int:
    _say(f"hjepa-metrics: error: {message}", sys.stderr)
    return EXIT_BAD_INPUT


# In the order of the help.
_ADD = (
    _add_summary,
    _add_watch,
    _add_compare,
    _add_report,
    _add_tensorboard,
    _add_explain,
    _add_export,
    _add_grafana,
    _add_doctor,
)


if __name__ == "__main__":
    sys.exit(main())
