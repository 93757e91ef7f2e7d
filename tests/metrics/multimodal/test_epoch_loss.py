import numpy as np
import pytest
import torch

from hjepa_dist_metrics import ConfigError, EpochLoss, MetricCollection
from tests.helpers.ranks import run_ranks

STEPS = 6


def test_scatter_is_that_of_the_global_batches_and_not_of_one_ranks():
    rng = np.random.default_rng(0)
    losses, counts = rng.random((3, STEPS)), rng.integers(0, 5, (3, STEPS))
    counts[0] += 1

    def body(context):
        metric = EpochLoss(STEPS)
        for step in range(STEPS - 1):  # the last step of the epoch is not taken
            loss, count = losses[context.rank, step], int(counts[context.rank, step])
            metric.update(torch.tensor(loss if count else float("nan")), count, step)
        return MetricCollection({"epoch": metric}, context).compute()

    by_step = ((losses * counts).sum(0) / counts.sum(0))[: STEPS - 1]
    for values in run_ranks(3, body):
        assert float(values["loss/train/epoch_mean"]) == pytest.approx(by_step.mean(), rel=1e-12)
        assert float(values["loss/train/epoch_std"]) == pytest.approx(by_step.std(), rel=1e-12)


def test_micro_steps_of_a_step_make_one_loss():
    metric = EpochLoss(2, group="x")
    for loss, count, step in ((1.0, 1, 0), (4.0, 2, 0), (5.0, 3, 1)):
        metric.update(loss, count, step)
    values = {tag: float(value) for tag, value in metric.compute().items()}
    assert values == pytest.approx({"x/epoch_mean": 4.0, "x/epoch_std": 1.0})  # 3 and 5


def test_steps_beyond_the_epoch_are_an_error():
    with pytest.raises(ConfigError, match="steps 0 to 2, got step 3"):
        EpochLoss(3).update(1.0, 1, 3)
    with pytest.raises(ConfigError, match="at least one step"):
        EpochLoss(0)
    assert EpochLoss(3).compute() == {}
