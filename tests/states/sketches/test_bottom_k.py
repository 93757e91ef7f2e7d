import numpy as np
import pytest
import torch

from hjepa_dist_metrics import ConfigError, DistributedMetric, MetricCollection
from hjepa_dist_metrics.states import BottomK
from tests.helpers.ranks import run_ranks


class Worst(DistributedMetric):
    def __init__(self):
        self.add_state("kept", BottomK(5, 2))

    def update(self, scores, labels):
        self.kept.update(scores, labels)

    def compute_from(self, states):
        kept = states["kept"]
        rows = [(s, *label) for s, label in zip(kept.scores.tolist(), kept.labels.tolist(), strict=True)]
        return {f"{i}": float(hash(tuple(map(float, row)))) for i, row in enumerate(rows)}


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_same_rows_for_every_split_ties_included(world_size):
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.integers(0, 6, 60) / 6)
    labels = torch.from_numpy(np.stack([rng.permutation(60), rng.integers(0, 3, 60)], axis=1))
    rows = sorted((s, *label) for s, label in zip(scores.tolist(), labels.tolist(), strict=True))[:5]

    def body(context):
        metric = Worst()
        mine = slice(context.rank, None, world_size)
        for s, named in zip(scores[mine].split(7), labels[mine].split(7), strict=True):
            metric.update(s, named)
        values = MetricCollection({"m": metric}, context).compute()
        return [float(values[f"{i}"]) for i in range(5)]

    assert run_ranks(world_size, body) == [[float(hash(tuple(map(float, row)))) for row in rows]] * world_size


def test_nan_invalid_and_missing_rows_are_left_out():
    state = BottomK(4, 1)
    scores = torch.tensor([[0.5, float("nan")], [-1.0, -2.0]])
    labels = torch.arange(4).reshape(2, 2, 1)
    state.update(scores, labels, valid=torch.tensor([[True, True], [True, False]]))
    assert state.scores.tolist() == [-1.0, 0.5]
    assert state.labels.tolist() == [[2], [0]]
    merged = BottomK(4, 1).merge(state)
    assert merged.scores.tolist() == [-1.0, 0.5]
    assert state.empty().labels.shape == (0, 1)


def test_refuses_labels_of_another_shape():
    with pytest.raises(ConfigError, match=r"labels of shape \[3, 2\], got \[3, 1\]"):
        BottomK(4, 2).update(torch.zeros(3), torch.zeros(3, 1))


def test_minus_infinity_is_the_lowest_score():
    state = BottomK(4, 1)
    scores = torch.tensor([2.0, -torch.inf, torch.inf, torch.nan, -1.0])
    state.update(scores, torch.arange(5)[:, None])
    assert state.scores.tolist() == [-np.inf, -1.0, 2.0]
    assert state.labels[:, 0].tolist() == [1, 4, 0]
