"""Probes against scikit-learn, over ranks, and what they say of input that does not fit."""

import math

import numpy as np
import pytest
import torch

from hjepa_dist_metrics import ConfigError, DesyncError, KNNProbe, LinearProbe, MetricCollection
from hjepa_dist_metrics.metrics.ssl.probes.logistic import fit_logistic
from tests.helpers.ranks import run_ranks, try_ranks

datasets = pytest.importorskip("sklearn.datasets")
DIGITS, NUMBERS = (torch.tensor(part) for part in datasets.load_digits(return_X_y=True))
IDS = torch.arange(len(DIGITS))
# Features of the kind that encoders give: redundant, offset, of uneven sizes.
MIX = torch.randn(64, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
FEATURES = (DIGITS @ MIX).tanh() * torch.logspace(-2, 2, 48) + 5.0


def fed(probe, pieces, **more):
    for piece in pieces:
        probe.update(FEATURES[piece].float(), NUMBERS[piece], ids=IDS[piece], **more)
    return probe


def numbers(probe, context=None):
    values = MetricCollection({"probe": probe}, context=context).compute()
    return {tag: value.value for tag, value in values.items()}


def split_of(probe):
    """Return what the probe learns from and what it scores, float64 arrays, by the ids that it keeps."""
    sample = probe.states["rows"]
    held_out = (sample.keys & 3 == 0).numpy()
    exponents = sample.rows[:, -1:].double()
    rows = (sample.rows[:, :-1].double() * 2.0**exponents).numpy()
    labels = sample.labels.numpy()
    return rows[~held_out], labels[~held_out], rows[held_out], labels[held_out]


def batches(size=128):
    return [slice(start, start + size) for start in range(0, len(DIGITS), size)]


def test_the_linear_probe_is_logistic_regression():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss, top_k_accuracy_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = fed(LinearProbe(48, 10), batches())
    rows, labels, others, truth = split_of(probe)
    assert 0.2 < len(others) / len(DIGITS) < 0.3
    peer = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2000, tol=1e-8))
    probabilities = peer.fit(rows, labels).predict_proba(others)
    got = numbers(probe)
    assert got["probe/features_linear_top1"] == pytest.approx(peer.score(others, truth), abs=0.003)
    top5 = top_k_accuracy_score(truth, probabilities, k=5)
    assert got["probe/features_linear_top5"] == pytest.approx(top5, abs=0.003)
    assert got["probe/features_linear_loss"] == pytest.approx(log_loss(truth, probabilities), rel=0.01)
    assert got["probe/features_linear_rows"] == len(rows)


def test_the_knn_probe_is_a_weighted_vote():
    from sklearn.neighbors import KNeighborsClassifier

    probe = fed(KNNProbe(48, 10, "teacher"), batches())
    rows, labels, others, truth = split_of(probe)
    peer = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    expected = peer.fit(rows, labels).score(others, truth)
    assert numbers(probe)["probe/teacher_knn_top1"] == pytest.approx(expected, abs=0.003)


@pytest.mark.parametrize("kind", [LinearProbe, KNNProbe])
@pytest.mark.parametrize("queue", [None, 300])
def test_every_number_of_ranks_gives_what_one_process_gives(kind, queue):
    """A stream of steps, of each of which the ranks see parts of uneven size, twice over."""

    def feed(probe, rank, world_size):
        for epoch in range(2):
            for number, piece in enumerate(batches()):
                own = torch.arange(len(DIGITS))[piece]
                own = own if world_size == 1 else own[(own * 7 % 11) % world_size == rank]
                probe.update(
                    FEATURES[own].float() + epoch, NUMBERS[own], ids=IDS[own], step=15 * epoch + number
                )
        return probe

    def make():
        return kind(48, 10, queue=queue, half_life=1e9 if queue is None else 5.0)

    expected = numbers(feed(make(), 0, 1))
    assert expected[f"probe/features_{kind.kind}_top1"] > 0.35
    for world_size in (2, 4):

        def body(context):
            return numbers(feed(make(), context.rank, context.world_size), context)

        for got in run_ranks(world_size, body):
            assert got == pytest.approx(expected, rel=1e-9)


def test_the_solver_finds_the_minimum():
    rows = torch.randn(60, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    classes = torch.arange(60) % 3
    weights, bias = fit_logistic(rows, classes, 3, l2=2.0)
    weights.requires_grad_(), bias.requires_grad_()
    loss = torch.nn.functional.cross_entropy(rows @ weights.T + bias, classes)
    (loss + 2.0 / (2 * 60) * weights.square().sum()).backward()
    assert weights.grad.abs().max() < 2e-5
    assert bias.grad.abs().max() < 2e-5


def test_tokens_are_averaged_or_labelled_themselves():
    tokens = torch.randn(40, 5, 4, generator=torch.Generator().manual_seed(2))
    valid = torch.rand(40, 5, generator=torch.Generator().manual_seed(3)) < 0.8
    valid[:, 0] = True
    labels = torch.arange(40) % 2
    pooled, whole = LinearProbe(4), LinearProbe(4)
    pooled.update(tokens, labels, valid, torch.arange(40))
    means = torch.where(valid[..., None], tokens.double(), 0.0).sum(dim=1) / valid.sum(dim=1, keepdim=True)
    whole.update(means, labels, ids=torch.arange(40))
    assert numbers(pooled) == pytest.approx(numbers(whole), rel=1e-6)
    each, flat = LinearProbe(4), LinearProbe(4)
    each.update(tokens, labels[:, None].expand(40, 5), valid, torch.arange(40))
    kept = valid.reshape(-1)
    flat.update(tokens.reshape(-1, 4)[kept], labels.repeat_interleave(5)[kept], ids=torch.arange(200)[kept])
    assert numbers(each) == pytest.approx(numbers(flat), rel=1e-9)


def test_samples_without_a_label_do_not_count():
    few, all_of_them = LinearProbe(48, 10), LinearProbe(48, 10)
    labels = torch.where(IDS % 3 == 0, NUMBERS, torch.where(IDS % 3 == 1, -1, -100))
    all_of_them.update(FEATURES, labels, ids=IDS)
    few.update(FEATURES[::3], NUMBERS[::3], ids=IDS[::3])
    assert numbers(all_of_them) == pytest.approx(numbers(few), rel=1e-9)


def test_classes_that_were_not_learned_are_misses():
    probe = KNNProbe(2, k=1)
    held_out = split_ids(probe)[1][:3]
    learned = split_ids(probe)[0][:3]
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    probe.update(rows, torch.tensor([0, 1, 0, 0, 1, 7]), ids=torch.tensor([*learned, *held_out]))
    assert numbers(probe)["probe/features_knn_top1"] == pytest.approx(2 / 3)


def split_ids(probe):
    """Return ids that a probe learns from and ids that it holds out."""
    state = probe.states["rows"].empty()
    state.update(torch.zeros(100, state.dim), torch.zeros(100).long(), ids=torch.arange(100))
    held_out = {int(key) for key in state.keys if key & 3 == 0}
    own = [state.empty() for _ in range(100)]
    for number, one in enumerate(own):
        one.update(torch.zeros(1, state.dim), torch.zeros(1).long(), ids=torch.tensor([number]))
    out = [number for number, one in enumerate(own) if int(one.keys[0]) in held_out]
    return [number for number in range(100) if number not in out], out


@pytest.mark.parametrize("kind", [LinearProbe, KNNProbe])
def test_rows_that_are_not_finite_are_counted(kind):
    probe = kind(48, 10)
    rows = FEATURES.clone()
    rows[5, 3], rows[9, 1] = math.nan, math.inf
    probe.update(rows, NUMBERS, ids=IDS)
    got = numbers(probe)
    assert got[f"probe/features_{kind.kind}_nonfinite"] == 2
    assert math.isnan(got[f"probe/features_{kind.kind}_top1"])


@pytest.mark.parametrize("kind", [LinearProbe, KNNProbe])
def test_features_that_are_all_the_same_give_no_better_than_chance(kind):
    probe = kind(3, 4)
    probe.update(torch.ones(400, 3), torch.arange(400) % 4, ids=torch.arange(400))
    assert numbers(probe)[f"probe/features_{kind.kind}_top1"] < 0.35


def test_before_two_rows_there_is_nothing_to_say():
    probe = LinearProbe(3, 4)
    assert numbers(probe) == {}
    probe.update(torch.ones(1, 3), torch.zeros(1).long())
    assert numbers(probe) == {}
    probe.update(torch.ones(0, 3), torch.zeros(0).long())
    assert numbers(probe) == {}


def test_it_says_which_labels_do_not_fit():
    probe = LinearProbe(3, 4, "encoder")
    for label in (4, -7):
        message = rf"LinearProbe of 'encoder' got the label {label}, expected 0 to 3; .* -1 or -100"
        with pytest.raises(ConfigError, match=message):
            probe.update(torch.ones(2, 3), torch.tensor([0, label]))
    for labels in (torch.zeros(2), torch.zeros(3).long(), torch.zeros(2, 1).long(), [0, 1]):
        with pytest.raises(ConfigError, match=r"labels as whole numbers \[2\].*got"):
            probe.update(torch.ones(2, 3), labels)
    with pytest.raises(ConfigError, match=r"ids of its labels' shape \[2\], got \[3\]"):
        probe.update(torch.ones(2, 3), torch.zeros(2).long(), ids=torch.arange(3))
    with pytest.raises(ConfigError, match="two classes"):
        LinearProbe(3, 1)
    with pytest.raises(ConfigError, match="temperature"):
        KNNProbe(3, temperature=0.0)


@pytest.mark.parametrize("on_a_device", [True, False])
def test_a_label_out_of_range_on_one_rank_is_an_error_on_all(on_a_device):
    def body(context):
        probe = LinearProbe(3, 4, "encoder")
        labels = torch.tensor([0, 9 if context.rank == 1 else 3])
        if on_a_device:  # where nobody looks at labels before the sync
            probe.highest_label.update(labels)
            probe.lowest_label.update(labels)
        else:
            try:
                probe.update(torch.ones(2, 3), labels)
            except ConfigError:
                assert context.rank == 1
        return numbers(probe, context)

    for error in try_ranks(2, body):
        assert isinstance(error, (DesyncError, ConfigError))
        assert "got the label 9" in str(error)


def test_labels_on_one_rank_alone_count():
    def body(context):
        probe = KNNProbe(48, 10)
        if context.rank == 1:
            fed(probe, batches())
        return numbers(probe, context)

    expected = numbers(fed(KNNProbe(48, 10), batches()))
    assert run_ranks(2, body) == [expected, expected]
