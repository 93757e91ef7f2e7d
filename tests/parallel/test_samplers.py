"""Padded samplers: every sample counts once."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from hjepa_dist_metrics import ConfigError, MetricCollection, WeightedMean, valid_samples
from tests.helpers.ranks import run_ranks


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("num_samples", "world_size"), [(1, 4), (3, 4), (7, 4), (8, 4), (10, 3), (5, 1)])
def test_each_sample_is_valid_once(num_samples, world_size, shuffle):
    dataset = TensorDataset(torch.arange(num_samples))
    counted = []
    for rank in range(world_size):
        sampler = DistributedSampler(dataset, world_size, rank, shuffle=shuffle)
        sampler.set_epoch(3)
        valid = valid_samples(sampler)
        loader = DataLoader(dataset, batch_size=2, sampler=sampler)
        batches = [batch for (batch,) in loader]
        masks = list(valid.batches(2))
        assert [len(mask) for mask in masks] == [len(batch) for batch in batches]
        kept = [n for batch, mask in zip(batches, masks, strict=True) for n in batch[mask].tolist()]
        assert len(kept) == valid.count == valid_samples(num_samples, rank, world_size).count
        counted += kept
    assert sorted(counted) == list(range(num_samples))


def test_nothing_is_padding_where_the_sampler_drops_the_last():
    dataset = TensorDataset(torch.arange(10))
    for rank in range(4):
        valid = valid_samples(DistributedSampler(dataset, 4, rank, shuffle=False, drop_last=True))
        assert valid.count == 2
        assert [mask.tolist() for mask in valid.batches(2)] == [[True, True]]


def test_the_mean_over_1797_digits_on_four_ranks_is_exact():
    datasets = pytest.importorskip("sklearn.datasets")
    digits = torch.from_numpy(datasets.load_digits().images).to(torch.float64).mean(dim=(1, 2))
    dataset = TensorDataset(digits)

    def body(context):
        sampler = DistributedSampler(dataset, context.world_size, context.rank, shuffle=False)
        loader = DataLoader(dataset, batch_size=64, sampler=sampler)
        metrics = MetricCollection({"true": WeightedMean("true"), "padded": WeightedMean("padded")}, context)
        for (batch,), mask in zip(loader, valid_samples(sampler).batches(64), strict=True):
            metrics["true"].update(batch[mask].mean(), mask.sum())
            metrics["padded"].update(batch.mean(), len(batch))
        counts = metrics.compute(lambda _, merged: {n: s["mean"].count for n, s in merged.items()})
        return metrics.compute(), counts

    assert len(digits) == 1797
    for values, counts in run_ranks(4, body):
        assert counts == {"true": 1797, "padded": 1800}
        assert float(values["true"]) == pytest.approx(digits.mean().item(), rel=1e-12)
        assert float(values["padded"]) != pytest.approx(digits.mean().item(), rel=1e-9)


@pytest.mark.parametrize("wrong", [(-1, 0, 2), (3, 2, 2), (3, -1, 2)])
def test_wrong_ranks_and_counts_are_refused(wrong):
    with pytest.raises(ConfigError, match="expected a rank of 2 ranks"):
        valid_samples(*wrong)


def test_a_number_alone_is_refused():
    with pytest.raises(ConfigError, match="num_samples, rank and world_size"):
        valid_samples(3)
