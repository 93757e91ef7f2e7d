"""The contract that every exported metric keeps; see `contract.py` for how to register one."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings

from hjepa_dist_metrics import MetricCollection
from tests.helpers.contract import (
    EXAMPLES,
    Example,
    assert_same,
    assert_same_counts,
    batches_of,
    compute,
    exported_metrics,
    fed,
    plain,
)
from tests.helpers.ranks import run_ranks
from tests.helpers.splits import Split, bits, splits, total

every_metric = pytest.mark.parametrize(
    "example", [pytest.param(example, id=kind.__name__) for kind, example in EXAMPLES.items()]
)
A, B, C = slice(0, 5), slice(5, 7), slice(7, 12)


def test_every_exported_metric_is_registered():
    assert {kind.__name__ for kind in exported_metrics()} == {kind.__name__ for kind in EXAMPLES}


def packed(metric) -> dict[tuple[str, str], bytes]:
    return {
        (name, key): bits(tensor)
        for name, state in metric.states.items()
        for key, tensor in state.pack().items()
    }


@every_metric
def test_merging_with_an_empty_metric_changes_nothing(example: Example):
    one, empty = fed(example, [A, B]), example.make()
    before = plain(compute(one))
    assert plain(compute(copy.deepcopy(one).merge(empty))) == before
    assert plain(compute(copy.deepcopy(empty).merge(one))) == before


@every_metric
def test_merging_is_associative(example: Example):
    left = fed(example, [A]).merge(fed(example, [B])).merge(fed(example, [C]))
    right = fed(example, [A]).merge(fed(example, [B]).merge(fed(example, [C])))
    assert_same(compute(left), compute(right), example)
    assert_same_counts(left, right)


@every_metric
def test_merging_leaves_the_other_metric_as_it_was(example: Example):
    other = fed(example, [B])
    before = packed(other)
    mine = fed(example, [A]).merge(other)
    example.feed(mine, C)
    assert packed(other) == before


@every_metric
def test_compute_leaves_the_local_state_untouched(example: Example):
    def body(context):
        metric = fed(example, [A] if example.replicated else [[A], [B, C]][context.rank])
        before = packed(metric)
        values = compute(metric, context)
        assert packed(metric) == before
        assert plain(compute(metric, context)) == plain(values)
        return plain(values)

    first, second = run_ranks(2, body)
    assert first == second


@every_metric
def test_a_metric_survives_its_state_dict(example: Example, tmp_path):
    metric, other = fed(example, [A, B]), fed(example, [C])
    torch.save(metric.state_dict(), tmp_path / "metric.pt")
    other.load_state_dict(torch.load(tmp_path / "metric.pt", weights_only=True))
    assert plain(compute(other)) == plain(compute(metric))


@every_metric
def test_reset_forgets_everything(example: Example):
    metric = fed(example, [A, B])
    metric.reset()
    assert plain(compute(metric)) == plain(compute(example.make()))


@every_metric
@settings(max_examples=15)
@given(split=splits())
def test_any_split_over_ranks_and_batches_equals_one_process(example: Example, split: Split):
    whole = fed(example, [slice(0, total(split))] if total(split) else [])
    expected = compute(whole)

    def body(context):
        metric = fed(example, batches_of(example, split, context.rank))
        collection = MetricCollection({"metric": metric}, context=context)
        return compute(metric, context), collection.compute(lambda _, merged: merged["metric"])

    results = run_ranks(len(split), body)
    for values, merged in results:
        assert_same(values, expected, example)
        assert plain(values) == plain(results[0][0])
        for name, state in merged.items():
            for key, tensor in state.pack().items():
                if tensor.dtype == torch.int64 and name not in example.rank_states:
                    assert torch.equal(tensor, whole.states[name].pack()[key]), (name, key)


@every_metric
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_a_state_saved_by_four_ranks_continues_at_any_number(example: Example, world_size: int):
    split = [[3, 2], [], [4], [1, 0, 5]]
    more = [[2], [1], [3], [0], [1], [], [2], [4]][:world_size]
    done = total(split)

    def save(context):
        metric = fed(example, batches_of(example, split, context.rank))
        return MetricCollection({"metric": metric}, context=context).state_dict()

    def resume(context):
        collection = MetricCollection({"metric": example.make()}, context=context)
        collection.load_state_dict(saved)
        for piece in batches_of(example, more, context.rank):
            example.feed(collection["metric"], slice(piece.start + done, piece.stop + done))
        return collection.compute()

    saved = run_ranks(4, save)[0]
    expected = compute(fed(example, [slice(0, done), slice(done, done + total(more))]))
    for values in run_ranks(world_size, resume):
        assert_same(values, expected, example)


@every_metric
def test_autocast_costs_no_digits(example: Example):
    metric = example.make()
    for piece in (A, B):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            example.feed(metric, piece)
            assert torch.is_autocast_enabled("cpu")
    assert plain(compute(metric)) == plain(compute(fed(example, [A, B])))


@every_metric
def test_the_default_device_is_none_of_its_business(example: Example):
    """Under `torch.set_default_device`, here to one that holds no data, what is made must name its device."""
    expected, metric = plain(compute(fed(example, [A, B]))), example.make()
    with torch.device("meta"):
        metric.reset()
    for name in ("update", "clip_", "before", "remember"):
        if hasattr(metric, name):
            setattr(metric, name, on_meta(getattr(metric, name)))
    for piece in (A, B):
        example.feed(metric, piece)
    assert plain(on_meta(compute)(metric)) == expected


def on_meta(call):
    def called(*args, **kwargs):
        with torch.device("meta"):
            return call(*args, **kwargs)

    return called
