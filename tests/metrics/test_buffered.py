"""Metrics that fold many steps at once: the same as one after the other, whoever looks and when."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st

from hjepa_dist_metrics import (
    GradientClipping,
    HierarchicalLoss,
    Masking,
    MetricCollection,
    TrainingStability,
)
from hjepa_dist_metrics.states import StepWindow

_LOSSES = st.sampled_from([0.5, 2.0, -1.0, float("nan"), float("inf")])
_STEPS = st.lists(st.tuples(_LOSSES, st.sampled_from([0, 1, 3]), st.booleans()), min_size=1, max_size=80)


def _values(metric):
    return {tag: float(v) for tag, v in metric.compute().items() if isinstance(v, float)}


def _feed_loss(metric, step):
    loss, count, whole = step
    named = {"loss": torch.tensor(loss), "loss_h0": torch.tensor(2 * loss)}
    metric.update(named | ({"loss_unweighted": 1.0} if whole else {}), count)


def _feed_clipping(metric, step):
    norm, coefficient, _ = step
    metric.update(torch.tensor(norm), torch.tensor(float(coefficient)), torch.tensor(norm > 1.0))


def _feed_stability(metric, step):
    loss, count, as_tensor = step
    metric.update(torch.tensor(loss) if as_tensor else loss, count)


def _feed_masking(metric, step):
    loss, count, valid = step
    mask = torch.tensor([[True, loss == loss, False, loss > 0], [False, True, count > 1, True]])
    options = {"valid": torch.tensor([True, count > 0])[: count or 2]} if valid else {}
    metric.update(mask[: count or 2], **options, count_blocks=count == 1)


KINDS = {
    "loss": (lambda: HierarchicalLoss(1), _feed_loss),
    "clipping": (lambda: GradientClipping([torch.zeros(2, requires_grad=True)], window=7), _feed_clipping),
    "masking": (lambda: Masking(4), _feed_masking),
    "stability": (lambda: TrainingStability(window=5, reach=9), _feed_stability),
}


@pytest.mark.parametrize("kind", list(KINDS))
@given(steps=_STEPS)
def test_it_does_not_matter_how_often_somebody_looks(kind, steps):
    make, feed = KINDS[kind]
    seldom, often = make(), make()
    for step in steps:
        feed(seldom, step)
        feed(often, step)
        assert often.states  # folds what waits
    assert _values(seldom) == pytest.approx(_values(often), nan_ok=True)


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_waits_is_merged_reset_and_saved(kind):
    make, feed = KINDS[kind]
    first, second, both = make(), make(), make()
    for i in range(6):
        feed(first if i < 3 else second, (float(i + 1), 1, False))
        feed(both, (float(i + 1), 1, False))
    if kind in ("loss", "masking"):  # the others go by the order of the steps
        assert _values(first.merge(second)) == pytest.approx(_values(both))
    fresh = make()
    fresh.load_state_dict(both.state_dict())
    assert _values(fresh) == pytest.approx(_values(both))
    feed(both, (9.0, 1, False))
    both.reset()
    assert _values(both) == _values(make())
    collection = MetricCollection({"it": make()})
    feed(collection["it"], (2.0, 1, False))
    before = collection.compute()
    feed(collection["it"], (4.0, 1, False))
    assert before
    assert collection.compute() != before


def test_what_waits_is_not_what_the_loop_changes_afterwards():
    metric, loss, count = HierarchicalLoss(0), torch.tensor(2.0), torch.tensor(3.0, dtype=torch.float64)
    metric.update({"loss": loss}, count)
    loss.zero_(), count.zero_()
    assert _values(metric)["loss/total"] == 2.0
    parameter = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    parameter.grad = torch.full((3,), 2.0, dtype=torch.float64)
    clipping = GradientClipping([parameter])
    clipping.clip_(1.0).zero_()
    assert _values(clipping)["gradient/global_norm_before_clip"] == pytest.approx(12**0.5)


@given(
    steps=st.lists(st.integers(0, 25), min_size=1, max_size=40),
    window=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_many_steps_at_once_are_recorded_as_one_after_the_other(steps, window, seed):
    generator = torch.Generator().manual_seed(seed)
    means = torch.rand(len(steps), generator=generator, dtype=torch.float64)
    counts = torch.randint(0, 3, (len(steps),), generator=generator).to(torch.float64)
    together, alone = StepWindow(window), StepWindow(window)
    together.update_many(steps, means, counts)
    for step, mean, count in zip(steps, means, counts, strict=True):
        alone.update(step, mean, count)
    assert torch.equal(together.data, alone.data)
