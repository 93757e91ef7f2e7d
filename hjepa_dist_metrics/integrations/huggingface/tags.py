"""Names: from those of the Trainer's reports to tags, as its own TensorBoard callback makes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from hjepa_dist_metrics.sinks import HParam

_EVALUATION = "eval_"
# Each rank's own clock: not a number of the job.
_TIMES = ("_runtime", "_per_second", "_compilation_time")
# Measured here, exactly, or of no use over time.
_MEASURED = {"loss", "grad_norm", "learning_rate", "epoch", "train_loss", "total_flos", "step"}
_HPARAMS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "optim",
    "bf16",
    "fp16",
    "seed",
)


def of_evaluation(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return an evaluation's numbers: `eval_accuracy` as `eval/accuracy`, `eval_loss` as `val/loss` too."""
    found = {
        f"eval/{name.removeprefix(_EVALUATION)}": float(value)
        for name, value in _numbers(metrics).items()
        if name != "epoch" and not name.endswith(_TIMES)
    }
    return found | ({"val/loss": found["eval/loss"]} if "eval/loss" in found else {})


def of_log(logs: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a log that are not measured here, `rewards/mean` as `train/rewards/mean`."""
    return {
        f"train/{name}": float(value)
        for name, value in _numbers(logs).items()
        if name not in _MEASURED and not name.startswith(_EVALUATION) and not name.endswith(_TIMES)
    }


def hparams(args: Any) -> dict[str, HParam]:
    """Return the training arguments by which runs are compared."""
    values = {name: getattr(args, name, None) for name in _HPARAMS}
    return {
        name: value if isinstance(value, (bool, int, float)) else str(getattr(value, "value", value))
        for name, value in values.items()
        if value is not None
    }


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: v for name, v in values.items() if isinstance(v, Real) or _is_number(v)}


def _is_number(value: Any) -> bool:
    return hasattr(value, "item") and math.prod(getattr(value, "shape", ())) == 1
