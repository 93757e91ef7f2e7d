"""Runs written by the logger, and the command on them."""

from hjepa_dist_metrics import MetricsLogger
from hjepa_dist_metrics.cli import main


def write_run(log_dir, name="run", rank=30.0, leak=(), loss=None, steps=10, **options):
    with MetricsLogger(name, log_dir, **options) as logger:
        logger.log_hparams({"model": {"embed_dim": 64}, "training": {"learning_rate": 0.5}})
        for step in range(steps):
            values = {"loss/total": loss(step) if loss else 1.0 / (1 + step)}
            values |= {
                "collapse/effective_rank": rank,
                "collapse/num_samples": 1000,
                "collapse/num_features": 64,
                "own/tag": step,
            }
            values |= {
                "masking/context_target_overlap": 0.3 * (step in leak),
                "performance/samples_per_second": 100.0 + step,
            }
            logger.log_metrics(values, step)


def run(capsys, *arguments):
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err
