"""Micro-batches put together: weighted means, counts of nothing, several losses, other devices."""

import math

import numpy as np
import pytest
import torch

from hjepa_dist_metrics.integrations.micro_batches import MicroBatches, batch_size, token_count

LOSSES, SIZES = (0.5, 2.0, 8.0), (4, 1, 3)


@pytest.mark.parametrize("as_tensors", [True, False])
@pytest.mark.parametrize("by_count", [True, False])
def test_losses_are_averaged_by_what_they_are_means_of(as_tensors, by_count):
    parts = MicroBatches()
    for loss, size in zip(LOSSES, SIZES, strict=True):
        value = torch.tensor(loss, requires_grad=True) if as_tensors else loss
        count = torch.tensor(10 * size) if as_tensors else 10 * size
        parts.add(value, samples=size, count=count if by_count else None, tokens=2 * size)
    taken = parts.take()
    assert float(taken["losses"]["loss"]) == pytest.approx(np.average(LOSSES, weights=SIZES), rel=1e-15)
    assert (taken["samples"], taken["tokens"]) == (8, 16)
    assert taken["count"] == (80 if by_count else 8)
    if as_tensors:
        assert not taken["losses"]["loss"].requires_grad


def test_taking_starts_anew_and_one_micro_batch_stays_as_it_is():
    parts, loss = MicroBatches(), torch.tensor(0.1)
    assert not parts
    parts.add({"loss": loss, "loss_h0": 1.0}, samples=3)
    assert parts
    taken = parts.take()
    assert taken["losses"]["loss"].dtype == torch.float32
    assert taken["losses"] == {"loss": loss, "loss_h0": 1.0}
    assert parts.take() == {"samples": 0, "tokens": 0}


def test_a_mean_over_nothing_does_not_matter():
    parts = MicroBatches()
    parts.add(torch.tensor(math.nan), samples=0)
    parts.add(torch.tensor(2.0), samples=3)
    assert float(parts.take()["losses"]["loss"]) == 2.0
    for _ in range(2):
        parts.add(torch.tensor(math.nan), samples=0)
    taken = parts.take()
    assert taken["count"] == 0
    assert math.isnan(taken["losses"]["loss"])


def test_losses_that_only_some_micro_batches_have_are_left_out():
    parts = MicroBatches()
    parts.add({"loss": 1.0, "loss_extra": 5.0}, samples=1)
    parts.add({"loss": 3.0}, samples=1)
    assert parts.take()["losses"] == {"loss": 2.0}


def test_nothing_is_copied_to_a_device():
    """On the meta device a copy of a number from the host, or a look at a value, is an error."""
    parts = MicroBatches()
    for size in SIZES:
        parts.add(torch.ones((), device="meta"), samples=size, count=torch.tensor(size))
    assert parts.take()["losses"]["loss"].device.type == "meta"


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.ones(3, 2), 3),
        ((torch.ones(4, 2), torch.ones(4)), 4),
        ({"name": "text", "scale": torch.tensor(1.0), "images": [torch.ones(5, 1)]}, 5),
        ("text", 1),
    ],
)
def test_the_size_of_a_batch(batch, size):
    assert batch_size(batch) == size


def test_the_tokens_of_a_batch():
    assert token_count({"input_ids": torch.ones(3, 7)}) == 21
    assert token_count({"images": torch.ones(3, 7)}) == token_count(torch.ones(3)) == 0
