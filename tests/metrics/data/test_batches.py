"""Fingerprints of batches against a comparison of their bytes, and what is made of them over ranks."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.testing._internal.two_tensor import TwoTensor

from hjepa_dist_metrics import BatchContent, MetricCollection
from hjepa_dist_metrics.metrics.data.fingerprints import fingerprint, inputs_of, is_constant
from tests.helpers.ranks import run_ranks


def images(seed, size=(4, 3, 8, 8)):
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


def key(batch):
    return int(fingerprint(inputs_of(batch)))


def numbers(values):
    return {tag: float(value) for tag, value in values.items()}


@dataclass
class Sample:
    pixels: torch.Tensor
    label: int


BATCHES = {
    "images": images(0),
    "other images": images(1),
    "shape": images(0).view(4, 3, 64),
    "half": images(0).half(),
    "tokens": torch.arange(600).view(4, 150),
    "bytes": torch.arange(600).view(4, 150).to(torch.uint8),
    "large": images(0, (8, 3, 100, 100)),
    "other large": images(1, (8, 3, 100, 100)),
    "complex": torch.complex(images(0), images(1)),
    "bool": images(0) > 0.5,
    "float8": images(0).to(torch.float8_e4m3fn),
}
FORMS = {
    "tuple": lambda x: (x, torch.arange(4)),
    "labels": lambda x: [x, torch.arange(4).flip(0)],
    "dict": lambda x: {"ids": ["a", "b"], "pixel_values": x, "n": 3},
    "nested": lambda x: {"meta": None, "views": ({"x": [x]}, 1.0)},
    "dataclass": lambda x: Sample(x, 3),
    "strided": lambda x: x.clone().transpose(0, 1).contiguous().transpose(0, 1),
}


def test_different_batches_have_different_keys():
    assert len({key(batch) for batch in BATCHES.values()}) == len(BATCHES)


@pytest.mark.parametrize("name", BATCHES)
def test_the_same_inputs_have_one_key_in_every_form(name):
    batch = BATCHES[name]
    assert {key(form(batch)) for form in FORMS.values()} == {key(batch.clone())}


@pytest.mark.parametrize("batch", [None, 3.0, "text", [], {"a": ["b", 1]}, torch.zeros(0, 3), (None, ())])
def test_a_batch_without_tensors_does_not_count(batch):
    metric = BatchContent()
    metric.update(batch, 0)
    assert metric.compute() == {}


def test_sparse_and_nested_tensors_are_left_out():
    dense = images(0)
    assert key([dense.view(12, 64).to_sparse(), dense]) == key(dense)
    assert key([torch.nested.nested_tensor([images(1), images(2)], layout=torch.jagged), dense]) == key(dense)


class Image(torch.Tensor):
    """As torchvision's `tv_tensors.Image`."""


def test_classes_of_tensors():
    dense = images(0)
    assert key([TwoTensor(images(1), images(2)), dense]) == key(dense)
    assert key(dense.as_subclass(Image)) == key(dense)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40_000), st.integers(0, 40_000))
def test_a_single_element_that_differs_counts_in_inputs_that_are_read_whole(size, place):
    batch = torch.zeros(min(size, 1 << 14))
    other = batch.clone()
    other[place % len(batch)] = 1.0
    assert key(batch) != key(other)


@pytest.mark.parametrize("size", [16, 1000, 100_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_constant_inputs(size, dtype):
    for value in (0, 1):
        batch = torch.full((size,), value).to(dtype)
        assert bool(is_constant(inputs_of((batch, torch.arange(2)))))
        batch[size // 2] = 1 - value
        assert not bool(is_constant(inputs_of(batch)))


def test_nan_alone_is_constant_too_and_a_mask_of_ones_is_no_constant_batch():
    assert bool(is_constant(inputs_of(torch.full((4, 9), float("nan")))))
    tokens = {"attention_mask": torch.ones(4, 8, dtype=torch.int64), "input_ids": torch.arange(32).view(4, 8)}
    assert not bool(is_constant(inputs_of(tokens)))
    assert not bool(is_constant(inputs_of(torch.ones(4))))  # too few to tell


def seen(course, metric=None):
    """Feed batches by their number, "|" for a new pass; return what is computed."""
    metric = metric or BatchContent()
    for step, number in enumerate(course):
        if number == "|":
            metric.start_pass()
        else:
            metric.update(images(int(number)), step)
    return numbers(metric.compute())


@pytest.mark.parametrize(
    ("course", "share"), [("0123", 0), ("0000", 1), ("0101", 2 / 3), ("0|0|0", None), ("01|01", 0)]
)
def test_the_share_of_repeated_batches(course, share):
    assert seen(course).get("data/repeated_batches") == (None if share is None else pytest.approx(share))


def test_a_batch_is_compared_with_the_last_64():
    course = [*range(64), 0, 200, 1]  # 0 is 64 batches back, 1 is 65 back
    expected = 1 / (len(course) - 1)
    assert seen(course)["data/repeated_batches"] == pytest.approx(expected)


def test_ranks_against_a_comparison_of_the_bytes():
    rng = np.random.default_rng(0)
    course = rng.integers(0, 6, size=(3, 8))  # the batch of each rank and step
    course[1, 5:] = 99  # constant ones

    def body(context):
        metric = BatchContent()
        for step, number in enumerate(course[context.rank]):
            metric.update(torch.zeros(4, 9) if number == 99 else images(int(number)), 40 + step)
        return numbers(MetricCollection({"m": metric}, context).compute())

    again = [np.mean([row[i] in row[:i] for i in range(1, 8)]) for row in course]
    shared = np.mean([len(set(column)) < 3 for column in course.T])
    expected = {
        "data/repeated_batches": max(again),
        "data/repeated_batches_rank": int(np.argmax(again)),
        "data/constant_batches": 3 / 8,
        "data/constant_batches_rank": 1,
        "data/shared_batches": shared,
    }
    assert run_ranks(3, body) == [pytest.approx(expected)] * 3


@pytest.mark.parametrize(("world_size", "same", "share"), [(2, True, 1.0), (5, False, 0.0), (40, True, 1.0)])
def test_the_same_shard_on_every_rank(world_size, same, share):
    def body(context):
        metric = BatchContent()
        for step in range(8):
            metric.update(images(step if same else 100 * context.rank + step, (2, 9)), step)
        collection = MetricCollection({"m": metric}, context)
        share = numbers(collection.compute())["data/shared_batches"]
        report = collection.last_sync
        return share, report.sent_bytes / report.rounds

    results = run_ranks(world_size, body)
    assert {found for found, _ in results} == {share}
    assert max(sent for _, sent in results) <= 8192  # no more than one frame a round


def test_ranks_that_work_on_one_batch_together_are_not_compared():
    def body(context):
        metric = BatchContent(compare_ranks=False)
        metric.update(images(0), 0)
        return MetricCollection({"m": metric}, context).compute()

    assert run_ranks(2, body) == [{"data/constant_batches": 0.0}] * 2
