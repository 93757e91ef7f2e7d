import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from hjepa_dist_metrics.reference.data import ImageSplits, TensorImages, load_digits_splits
from hjepa_dist_metrics.reference.hjepa.probe import draw_labelled, knn_accuracy
from tests.helpers.ranks import run_ranks


def encode(images):
    """Stand in for a frozen encoder: two tokens of 64 channels."""
    flat = images.flatten(1)
    return torch.stack([flat, flat.flip(1)], dim=1)


def vote(distance):
    return np.exp((1.0 - distance) / 0.07)


def test_accuracy_equals_sklearn_on_the_digits():
    data = load_digits_splits()
    known, queries = (encode(part.images).double().mean(dim=1).numpy() for part in (data.train, data.val))
    labels = data.train.labels.numpy()
    scores = []
    for draw in [draw_labelled(data.train.labels, 10, draw) for draw in range(5)]:
        assert np.bincount(labels[draw]).tolist() == [10] * 10
        oracle = KNeighborsClassifier(5, metric="cosine", algorithm="brute", weights=vote)
        scores.append(oracle.fit(known[draw], labels[draw]).score(queries, data.val.labels.numpy()))
    assert knn_accuracy(encode, data, 64) == pytest.approx(np.mean(scores), abs=2e-3)
    assert np.mean(scores) > 0.6


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_every_world_size_gives_the_same_number_on_every_rank(world_size):
    data = load_digits_splits()
    results = run_ranks(world_size, lambda context: knn_accuracy(encode, data, 64, context=context))
    assert results == [knn_accuracy(encode, data, 64)] * world_size


def test_images_without_classes_have_no_accuracy():
    images = TensorImages(torch.rand(4, 1, 8, 8), torch.full((4,), -1))
    assert knn_accuracy(encode, ImageSplits(images, images, (8, 8), 1, ()), 64) is None
