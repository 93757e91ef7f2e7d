import math

import numpy as np
import pytest
import torch

from hjepa_dist_metrics import ConfigError, HierarchicalLoss, MetricCollection
from tests.helpers.ranks import run_ranks

pytestmark = pytest.mark.accuracy


def numbers(values):
    return {tag: float(value) for tag, value in values.items()}


def test_mean_weighted_by_count_and_shares_by_level_weight():
    loss = HierarchicalLoss(2, weights=[1.0, 0.5])
    loss.update({"loss": 2.0, "loss_h0": 1.0, "loss_h1": 2.0, "loss_unweighted": 1.5}, count=1)
    loss.update({"loss": 5.0, "loss_h0": 4.0, "loss_h1": 2.0, "loss_unweighted": 3.0}, count=3)
    values = numbers(loss.compute())
    assert values["loss/total"] == (2 * 1 + 5 * 3) / 4
    assert values["loss/h0"] == (1 * 1 + 4 * 3) / 4  # 3.25
    assert values["loss/h1"] == 2.0
    assert values["loss/unweighted"] == (1.5 + 3 * 3) / 4
    # weighted: 1 * 3.25 and 0.5 * 2.0 of 4.25
    assert values["loss/contribution_h0"] == pytest.approx(100 * 3.25 / 4.25, rel=1e-12)
    assert values["loss/contribution_h0"] + values["loss/contribution_h1"] == pytest.approx(100.0, rel=1e-12)


def test_counts_by_level():
    loss = HierarchicalLoss(2)
    loss.update({"loss": 3.0, "loss_h0": 1.0, "loss_h1": 2.0}, count={"loss_h0": 1, "loss_h1": 4})
    loss.update({"loss": 9.0, "loss_h0": 5.0, "loss_h1": 4.0}, count={"loss_h0": 3, "loss_h1": 4})
    values = numbers(loss.compute())
    assert values["loss/h0"] == (1 * 1 + 5 * 3) / 4
    assert values["loss/h1"] == 3.0
    assert values["loss/total"] == pytest.approx((3.0 * 5 + 9.0 * 7) / 12, rel=1e-12)


@pytest.mark.parametrize("split", [[], [3], [0, 1, 4]])
def test_the_unweighted_loss_is_the_mean_of_the_levels_for_every_split(split):
    rng = np.random.default_rng(1)
    values, masked = rng.random((8, 2, 5)), rng.random((8, 2, 5)) < 0.4
    masked[0, 1] = False  # the first sample has nothing at level 1: its mean is NaN, over a count of 0

    def mean(part, level):
        chosen = part[0][:, level][part[1][:, level]]
        return chosen.mean() if len(chosen) else math.nan

    loss = HierarchicalLoss(2)
    for part in zip(np.split(values, split), np.split(masked, split), strict=True):
        levels = {f"loss_h{i}": mean(part, i) for i in range(2)}
        counts = {f"loss_h{i}": int(part[1][:, i].sum()) for i in range(2)}
        loss.update({"loss": 1.0, **levels}, counts)
    found, whole = numbers(loss.compute()), (values, masked)
    expected = [mean(whole, level) for level in range(2)]
    assert found["loss/unweighted"] == pytest.approx(sum(expected) / 2, rel=1e-12)
    assert found["loss/nonfinite"] == 0


def test_a_level_without_anything_does_not_count_in_the_unweighted_loss():
    loss = HierarchicalLoss(2)
    loss.update({"loss": 3.0, "loss_h0": 3.0, "loss_h1": math.nan}, {"loss_h0": 2, "loss_h1": 0})
    assert numbers(loss.compute())["loss/unweighted"] == 3.0


def test_ranks_with_uneven_counts_equal_the_mean_over_everything():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(40, 3)) ** 2
    shares = np.split(samples, [7, 7, 31])  # the second rank has nothing

    def body(context):
        own = shares[context.rank]
        loss = HierarchicalLoss(3)
        if len(own):
            means = own.mean(axis=0)
            named = {f"loss_h{i}": torch.tensor(m) for i, m in enumerate(means)}
            loss.update({"loss": torch.tensor(own.sum(axis=1).mean()), **named}, len(own))
        return numbers(MetricCollection({"loss": loss}, context).compute())

    results = run_ranks(4, body)
    assert all(result == results[0] for result in results)
    assert results[0]["loss/total"] == pytest.approx(samples.sum(axis=1).mean(), rel=1e-12)
    for level in range(3):
        assert results[0][f"loss/h{level}"] == pytest.approx(samples[:, level].mean(), rel=1e-12)


def test_nonfinite_loss_is_counted_and_its_level_named():
    loss = HierarchicalLoss(3)
    loss.update({"loss": math.nan, "loss_h0": 1.0, "loss_h1": math.nan, "loss_h2": math.inf})
    values = numbers(loss.compute())
    assert math.isnan(values["loss/total"])
    assert values["loss/h0"] == 1.0
    assert values["loss/first_nonfinite_level"] == 1
    assert values["loss/nonfinite"] == 3  # total, h1, h2
    assert math.isnan(values["loss/unweighted"])


def test_a_mean_over_nothing_is_not_a_finding():
    loss = HierarchicalLoss(1)
    loss.update({"loss": math.nan, "loss_h0": math.nan}, count=0)
    assert loss.compute() == {}
    loss.update({"loss": 2.0, "loss_h0": 2.0}, count=5)
    assert numbers(loss.compute())["loss/nonfinite"] == 0


def test_extra_losses_and_no_levels():
    loss = HierarchicalLoss(0, extra=["loss_variance"])
    loss.update({"loss": 2.0, "loss_variance": torch.tensor(0.5, requires_grad=True)}, 4)
    assert numbers(loss.compute()) == {"loss/total": 2.0, "loss/nonfinite": 0.0, "loss/variance": 0.5}


@pytest.mark.parametrize(
    ("losses", "message"),
    [({"loss": 1.0}, "loss_h0"), ({"loss_h0": 1.0}, "without")],
)
def test_missing_losses_are_named(losses, message):
    with pytest.raises(ConfigError, match=message):
        HierarchicalLoss(1).update(losses)


def test_zero_losses_share_nothing():
    loss = HierarchicalLoss(2)
    loss.update({"loss": 0.0, "loss_h0": 0.0, "loss_h1": 0.0})
    assert numbers(loss.compute())["loss/contribution_h0"] == 0.0


def test_wrong_number_of_weights():
    with pytest.raises(ConfigError, match="expected 3 level weights"):
        HierarchicalLoss(3, weights=[1.0])


def test_an_infinite_level_has_no_share_and_warns_of_nothing():
    loss = HierarchicalLoss(2)
    loss.update({"loss": math.inf, "loss_h0": 1.0, "loss_h1": math.inf})
    values = numbers(loss.compute())
    assert values["loss/unweighted"] == math.inf
    assert values["loss/contribution_h0"] == 0.0
    assert math.isnan(values["loss/contribution_h1"])
    assert values["loss/first_nonfinite_level"] == 1
