"""The command: every fault in every mode at every number of ranks, each with several victims."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

from benchmarks._ranks import markdown, whole, write
from benchmarks.faults.cases import FAULTS, SYNCS, TIMEOUT, Fault, Mode, body
from benchmarks.faults.judge import HELD, VERDICTS, judge
from benchmarks.faults.processes import run_ranks

_CONTEXT = """\
Ranks are processes over gloo on this machine that sync metrics with a limit of 2 s. Before the third sync one
of them, each in turn, does what the case says. Held: every other rank ends in time with the error that names
the victim, and each number of a sync that succeeded is right. The exit code is 1 where any run is not held.
"""
_PATIENCE = 60.0 + 10 * TIMEOUT  # for processes that share a busy machine
_MOST_VICTIMS = 4


def run(argv: Sequence[str]) -> int:
    """Run all cases, print the table, write faults.md and faults.json."""
    options = _parser().parse_args(argv)
    chosen = [fault for fault in FAULTS if not options.cases or any(c in fault.name for c in options.cases)]
    cells = [
        _cell(fault, mode, world_size, options.rounds)
        for fault in chosen
        for mode in options.modes
        for world_size in options.ranks
    ]
    text = report(cells)
    print(text)
    write(options.out, "faults.md", text)
    write(options.out, "faults.json", json.dumps(cells, indent=1))
    return int(any(cell["verdicts"][HELD] < cell["runs"] for cell in cells))


def victims(world_size: int) -> list[int]:
    """Return the ranks that are victims in turn: all of few, the first, the last and some between of many."""
    if world_size <= _MOST_VICTIMS:
        return list(range(world_size))
    return sorted({round(i * (world_size - 1) / (_MOST_VICTIMS - 1)) for i in range(_MOST_VICTIMS)})


def _cell(fault: Fault, mode: Mode, world_size: int, rounds: int) -> dict[str, Any]:
    verdicts: Counter[str] = Counter(dict.fromkeys(VERDICTS, 0))
    odd = []
    for victim in victims(world_size) * rounds:
        answers = run_ranks(world_size, body, world_size, victim, fault.name, mode, patience=_PATIENCE)
        verdict = judge(fault, world_size, victim, answers)
        verdicts[verdict] += 1
        if verdict != HELD:
            odd.append({"victim": victim, "verdict": verdict, "answers": answers})
    print(f"{fault.name}, {mode}, {world_size} ranks: {dict(verdicts)}", file=sys.stderr, flush=True)
    return {
        "case": fault.name,
        "mode": mode,
        "ranks": world_size,
        "runs": verdicts.total(),
        "verdicts": dict(verdicts),
        "not held": odd,
    }


def report(cells: Sequence[dict[str, Any]]) -> str:
    """Return the table in Markdown, with a line of totals."""
    head = ["case", "mode", "ranks", "runs", *VERDICTS]
    rows = [
        [cell["case"], cell["mode"], str(cell["ranks"]), str(cell["runs"])]
        + [str(cell["verdicts"][verdict]) for verdict in VERDICTS]
        for cell in cells
    ]
    totals = [str(sum(cell["verdicts"][verdict] for cell in cells)) for verdict in VERDICTS]
    rows.append(["all", "", "", str(sum(cell["runs"] for cell in cells)), *totals])
    lines = [
        f"{cell['case']}, {cell['mode']}, {cell['ranks']} ranks: {odd}"
        for cell in cells
        for odd in cell["not held"]
    ]
    return "\n\n".join([markdown(head, rows), f"{SYNCS} syncs a run.", *lines])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmark.py faults", description=_CONTEXT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    modes = list(get_args(Mode))
    parser.add_argument("--ranks", type=whole(2), nargs="+", default=[2, 3, 4, 8], help="numbers of ranks")
    parser.add_argument("--modes", choices=modes, nargs="+", default=modes, help="default: both")
    parser.add_argument("--cases", nargs="+", default=[], help="only cases whose name holds one of these")
    parser.add_argument("--rounds", type=whole(1), default=1, help="runs of each victim (default 1)")
    parser.add_argument("--out", default="results/benchmarks", help="folder of faults.md and faults.json")
    return parser
