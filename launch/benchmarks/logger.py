"""What a call of MetricsLogger costs the training thread, against the same through a bare SummaryWriter.

A scalar, a dictionary of 100 scalars, a histogram of a million elements, an image of 256x256 pixels. The
writers take turns. Only the call is timed; between calls the writing threads get time to write, as the rest
of a training step would give them. "With writing" also counts the wait until everything is on disk.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._ranks import markdown, median, write
from hjepa_dist_metrics import ConfigError, MetricsLogger

GOAL = 0.1
_SCALARS = 100
_ELEMENTS = 1_000_000
_SIDE = 256
_IMAGES_AT_MOST = 10  # of a call: they are slow

Call = Callable[[Any, int], None]


def run(argv: Sequence[str]) -> int:
    """Measure, print the table, and write logger.md."""
    options = _parser().parse_args(argv)
    if options.rounds < 2:
        raise ConfigError(f"--rounds is {options.rounds}; the median needs 2 or more")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        text = report(measure(Path(folder), options.rounds, options.pause, options.elements))
    print(text)
    write(options.out, "logger.md", text)
    return 0


def calls(elements: int = _ELEMENTS) -> dict[str, tuple[Call, Call]]:
    """Return what is measured: the call of the logger, and the same through a SummaryWriter."""
    rng = np.random.default_rng(0)
    names = [f"group{index % 10}/metric{index}" for index in range(_SCALARS)]
    numbers = dict.fromkeys(names, 0.5)
    values = torch.from_numpy(rng.normal(size=elements).astype(np.float32))
    picture = rng.random((3, _SIDE, _SIDE)).astype(np.float32)

    def write_each(writer: Any, step: int) -> None:
        for name in names:
            writer.add_scalar(name, 0.5, step)

    return {
        "1 scalar": (
            lambda logger, step: logger.log_metrics({"loss": 0.5}, step),
            lambda writer, step: writer.add_scalar("loss", 0.5, step),
        ),
        f"{_SCALARS} scalars": (lambda logger, step: logger.log_metrics(numbers, step), write_each),
        f"histogram of {elements:,}": (
            lambda logger, step: logger.log_histogram("values", values, step),
            lambda writer, step: writer.add_histogram("values", values, step),
        ),
        f"image {_SIDE}x{_SIDE}": (
            lambda logger, step: logger.log_image("picture", picture, step, dataformats="CHW"),
            lambda writer, step: writer.add_image("picture", picture, step),
        ),
    }


def measure(
    folder: Path, rounds: int, pause: float, elements: int = _ELEMENTS
) -> dict[str, tuple[float, float, float, float]]:
    """Return seconds by what is written: of the logger's call and writer's, then with the writing."""
    from torch.utils.tensorboard import SummaryWriter

    results = {}
    for number, (name, (ours, theirs)) in enumerate(calls(elements).items()):
        count = rounds if "scalar" in name else min(rounds, _IMAGES_AT_MOST)
        with MetricsLogger(f"run{number}", folder, {"jsonl": {"enabled": False}}) as logger:
            writer: Any = SummaryWriter(str(folder / f"bare{number}"))
            mine, other = _seconds((logger, writer), (ours, theirs), count, pause)
            results[name] = (median(mine[0]), median(other[0]), mine[1], other[1])
            writer.close()
    return results


def _seconds(
    writers: tuple[Any, Any], bodies: tuple[Call, Call], count: int, pause: float
) -> list[tuple[list[float], float]]:
    """Return for each writer the seconds of its calls, and those of a call with its writing, in turns."""
    single: tuple[list[float], list[float]] = ([], [])
    whole = [0.0, 0.0]
    for step in range(count + 1):
        for index, (writer, body) in enumerate(zip(writers, bodies, strict=True)):
            begun = time.perf_counter()
            body(writer, step)
            called = time.perf_counter()
            writer.flush()
            if step:  # the first call opens things
                single[index].append(called - begun)
                whole[index] += (time.perf_counter() - begun) / count
            time.sleep(pause)
    return [(single[index], whole[index]) for index in range(2)]


def report(results: dict[str, tuple[float, float, float, float]]) -> str:
    """Return the table, and whether 100 scalars cost at most a tenth of 100 `add_scalar` calls."""
    header = ["written", "logger, us", "SummaryWriter, us", "ratio", "with writing, us", "SummaryWriter, us"]
    rows = [
        [name, *(f"{1e6 * s:,.0f}" for s in (mine, other)), f"{mine / other:.3f}"]
        + [f"{1e6 * s:,.0f}" for s in (whole, bare)]
        for name, (mine, other, whole, bare) in results.items()
    ]
    mine, other, *_ = results[f"{_SCALARS} scalars"]
    verdict = "met" if mine <= GOAL * other else "NOT met"
    goal = (
        f"{_SCALARS} scalars at most {GOAL:g} of {_SCALARS} add_scalar calls: {verdict} ({mine / other:.3f})"
    )
    return "\n\n".join([markdown(header, rows), goal])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmark.py logger", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="calls of each kind (default 200)")
    parser.add_argument("--pause", type=float, default=0.002, help="seconds between calls (default 0.002)")
    parser.add_argument(
        "--elements", type=int, default=_ELEMENTS, help=f"of the histogram's tensor (default {_ELEMENTS})"
    )
    parser.add_argument("--out", default="results/benchmarks", help="folder of logger.md")
    return parser
