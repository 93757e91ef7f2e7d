"""The training command: parse, join the job, train, show; one line and a non-zero exit for bad input."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from hjepa_dist_metrics import MetricsError, ProcessContext
from hjepa_dist_metrics.reference.arguments import RunConfig, parse
from hjepa_dist_metrics.reference.launch import Stopped, StopSignals, process
from hjepa_dist_metrics.reference.progress import show_progress
from hjepa_dist_metrics.reference.summary import show, stopped_line
from hjepa_dist_metrics.reference.trainer import Outcome, Trainer
from hjepa_dist_metrics.reference.workloads import workload_kind

EXIT_BAD_INPUT = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 128 and the signal's number where it was told to stop."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    signals = StopSignals()
    try:
        train(parse(given), signals, given)
    except MetricsError as error:
        if signals.received is not None:
            return signals.received.exit_code
        rank = f"[rank {os.environ['RANK']}] " if "RANK" in os.environ else ""
        print(f"{rank}train.py: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return EXIT_BAD_INPUT
    except Stopped as stopped:
        return stopped.exit_code
    finally:
        signals.restore()
    return 0


def train(config: RunConfig, signals: StopSignals | None = None, arguments: Sequence[str] = ()) -> Outcome:
    """Train the configured workload on this process and show the result on the main one."""
    with process() as context:
        kind = workload_kind(config.workload)
        workload = kind.build(config.model, config.data, config.training, context)
        trainer = Trainer(workload, config.training, config.logging, context, config.settings())
        if context.is_main:
            print(opening(context, trainer.start_step), file=sys.stderr, flush=True)
        try:
            with show_progress(config.logging, context.is_main) as progress:
                outcome = trainer.run(progress)
        except BaseException:
            received = None if signals is None else signals.received
            if received is None:
                raise
            if context.is_main:
                print(stopped_line(trainer, arguments), file=sys.stderr, flush=True)
            raise received from None
        if context.is_main:
            show(outcome, config.logging, kind.rows(outcome, config.model))
        return outcome


def opening(context: ProcessContext, start_step: int) -> str:
    """Return what a run says first: a launcher that started fewer ranks than it was asked for shows here."""
    ranks = f"{context.world_size} rank" + ("s" if context.world_size > 1 else "")
    where = f", from step {start_step}" if start_step else ""
    return f"train.py: training on {ranks}, {context.device.type}{where}"
