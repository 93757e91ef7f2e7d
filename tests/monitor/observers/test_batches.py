"""What a monitored loop says of its loader: which steps are looked at, passes, accumulation, ranks."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from hjepa_dist_metrics import BatchContent, TrainingMonitor
from tests.monitor.test_monitor import batches, config, problem, series

PLAIN = {"tensorboard": {"enabled": False}, "dashboards": [], "sync": "inline"}


def run(tmp_path, passes, log_frequency=10, micro=1):
    """Take batches of each of the loaders `passes`; return what was published and the steps looked at."""
    model, optimizer = problem()
    looked = []
    with TrainingMonitor(model, optimizer, config(tmp_path, log_frequency=log_frequency, **PLAIN)) as monitor:
        update = BatchContent.update

        def counted(self, batch, step):
            looked.append(step)
            update(self, batch, step)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(BatchContent, "update", counted)
            for loader, steps in passes:
                for number, _ in enumerate(itertools.islice(monitor.batches(loader), micro * steps)):
                    if number % micro == micro - 1:
                        monitor.step(samples=8, losses=1.0)
    return series(tmp_path, "data/repeated_batches"), looked


def test_the_same_batch_at_every_step(tmp_path):
    published, looked = run(tmp_path, [(itertools.repeat(batches(1)[0]), 21)])
    assert published == {10: 1.0, 20: 1.0}
    assert looked == [0, *range(7, 11), *range(17, 21)]


def test_different_batches(tmp_path):
    published, looked = run(tmp_path, [(iter(batches(21)), 21)], micro=1)
    assert set(published.values()) == {0.0}
    assert len(looked) == len(set(looked))


def test_an_iterator_for_every_step(tmp_path):
    """`next(iter(loader))` at every step gives the first batch of a loader that does not shuffle."""
    loader = DataLoader(TensorDataset(torch.cat(batches(5))), batch_size=8)
    published, _ = run(tmp_path, [(loader, 1)] * 21)
    assert published == {10: 1.0, 20: 1.0}


@pytest.mark.parametrize("number", [1, 3])
def test_passes_over_a_small_dataset_repeat_nothing(tmp_path, number):
    """Full-batch training, and a dataset of three batches that is not shuffled."""
    loader = DataLoader(TensorDataset(torch.cat(batches(number))), batch_size=8)
    published, looked = run(tmp_path, [(loader, number + 1)] * (30 // number))
    assert len(looked) > 8
    assert set(published.values()) <= {0.0}


def test_of_several_batches_a_step_the_first_is_looked_at(tmp_path):
    first, second = batches(2)
    published, looked = run(tmp_path, [(itertools.cycle([first, second]), 11)], micro=2)
    assert looked == [0, *range(7, 11)]
    assert published == {10: 1.0}


@pytest.mark.parametrize(("epochs", "expected"), [(1, 1.0), (6, None)])
def test_a_loop_that_hands_over_its_batches(tmp_path, epochs, expected):
    model, optimizer = problem()
    (batch,) = batches(1)
    with TrainingMonitor(model, optimizer, config(tmp_path, log_frequency=5, **PLAIN)) as monitor:
        for step in range(6):
            for _ in range(2):  # of two micro-batches the first counts
                monitor.observe_batch({"pixel_values": batch}, epoch=step * epochs // 6)
            monitor.step(samples=8)
        assert monitor.latest.get("data/repeated_batches") == expected
        assert monitor.latest["data/constant_batches"] == 0.0


class Stream(IterableDataset):
    def __iter__(self):
        return iter(["a", "b", "c", "d"])


def test_a_stream_of_texts_has_nothing_to_compare(tmp_path):
    published, looked = run(tmp_path, [(DataLoader(Stream(), batch_size=2), 2)], log_frequency=1)
    assert published == {}
    assert looked == [0, 1]


def shard(rank, course):
    """Return this rank's loader: shards of one dataset, one shard for all, or zeros on rank 1."""
    if course == "zeros" and rank == 1:
        return [torch.zeros(8, 6)] * 9
    return batches(9, seed=rank if course != "one" else 7)


def train(log_dir, course):
    rank = torch.distributed.get_rank()
    model = nn.Linear(6, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with TrainingMonitor(model, optimizer, config(log_dir, log_frequency=8, **PLAIN)) as monitor:
        for x in monitor.batches(shard(rank, course)):
            monitor.step(samples=len(x), losses=1.0)
        return {tag: value for tag, value in monitor.latest.items() if tag.startswith("data/")}


@pytest.mark.parametrize(
    ("course", "expected"),
    [
        ("own", {"shared_batches": 0.0, "constant_batches": 0.0}),
        ("one", {"shared_batches": 1.0, "constant_batches": 0.0}),
        ("zeros", {"shared_batches": 0.0, "constant_batches": 1.0, "constant_batches_rank": 1.0}),
    ],
)
def test_shards_of_ranks(gloo, tmp_path, course, expected):
    for latest in gloo(2).run(train, str(tmp_path), course):
        found = {tag.removeprefix("data/"): value for tag, value in latest.items()}
        assert {tag: found.get(tag) for tag in expected} == expected
        assert ("constant_batches_rank" in found) == ("constant_batches_rank" in expected)
