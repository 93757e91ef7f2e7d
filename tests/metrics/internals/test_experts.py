"""Load of experts against NumPy; both ways to count in an expert-parallel job agree."""

import math

import numpy as np
import pytest
import torch

from hjepa_dist_metrics import ConfigError, ExpertLoad, MetricCollection
from tests.helpers.ranks import run_ranks

TOKENS, EXPERTS = 120, 6


def logits(seed=0):
    scores = torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scores[:, 4] -= 50.0  # no token chooses it
    return scores + torch.tensor([2.0, 0, 0, 0, 0, 0])


def test_numbers_are_numpys():
    load = ExpertLoad(EXPERTS, per_layer=True)
    for layer in range(3):
        scores = logits(layer)
        load.update(
            scores.topk(2).indices.view(4, 30, 2), scores.view(4, 30, EXPERTS), layer=f"layers.{layer}"
        )
    found = load.compute()
    overload, entropies, routing = [], [], []
    for layer in range(3):
        scores = logits(layer).numpy()
        chosen = np.argsort(-scores, axis=1)[:, :2]
        counts = np.bincount(chosen.ravel(), minlength=EXPERTS)
        share = counts[counts > 0] / counts.sum()
        overload.append(counts.max() / counts.mean())
        entropies.append(-(share * np.log(share)).sum())
        p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        routing.append(-(p * np.log(p)).sum(1).mean() / math.log(EXPERTS))
        assert found[f"experts/layers.{layer}_overload_factor"] == pytest.approx(overload[-1])
    assert found["experts/overload_factor_max"] == pytest.approx(max(overload))
    assert found["experts/load_entropy_min"] == pytest.approx(min(entropies) / math.log(EXPERTS))
    assert found["experts/effective_experts_median"] == pytest.approx(math.exp(np.median(entropies)))
    assert found["experts/routing_entropy"] == pytest.approx(np.mean(routing))
    assert found["experts/dead_experts"] == 3
    assert found["experts/utilization"] == pytest.approx(1 - 3 / 18)
    assert found["experts/experts_per_token"] == 2
    assert found["experts/dropped_fraction"] == 0
    assert found["experts/busiest"].markdown.startswith("`layers.")
    assert ", expert 0: " in found["experts/busiest"].markdown
    assert found["experts/dead"].markdown.count("experts 4") == 3


def test_choices_of_no_expert_are_dropped_and_invalid_tokens_are_not_there():
    load = ExpertLoad(3)
    choices = torch.tensor([[0], [1], [-1], [7], [1]])
    load.update(choices, valid=torch.tensor([True, True, True, True, False]))
    found = load.compute()
    assert found["experts/dropped_fraction"] == 0.5
    assert found["experts/dead_experts"] == 1
    assert found["experts/overload_factor_max"] == 1.5


def test_what_experts_receive_is_what_tokens_choose():
    """Four ranks, experts dealt out over two: ranks 0 and 2 hold the first half, 1 and 3 the second."""
    choices = logits().topk(2).indices
    shares = choices.chunk(4)

    def body(context):
        chosen, received = ExpertLoad(EXPERTS), ExpertLoad(EXPERTS)
        chosen.update(shares[context.rank], layer="a")
        part, first = context.rank % 2, context.rank - context.rank % 2
        held = range(3 * part, 3 * part + 3)
        tokens = torch.cat([shares[first], shares[first + 1]])  # of the two ranks that share their experts
        counts = [int((tokens == expert).sum()) for expert in held]
        received.update_received(counts, held, layer="a", tokens=len(shares[context.rank]))
        return MetricCollection({"chosen": chosen}, context=context).compute(), MetricCollection(
            {"received": received}, context=context
        ).compute()

    alone = ExpertLoad(EXPERTS)
    alone.update(choices, layer="a")
    for chosen, received in run_ranks(4, body):
        assert chosen == received == alone.compute()


def test_layers_of_several_ranks_are_put_together():
    def body(context):
        load = ExpertLoad(2)
        load.update(torch.full((8, 1), context.rank), layer=f"layers.{context.rank}")
        return MetricCollection({"load": load}, context=context).compute()

    for found in run_ranks(2, body):
        assert found["experts/dead_experts"] == 2
        assert found["experts/overload_factor_median"] == 2


def test_counts_are_exact_beyond_two_to_the_24():
    load = ExpertLoad(2)
    load.update_received([2**24, 2**33], [0, 1])
    for _ in range(3):
        load.update(torch.zeros(1, 1, dtype=torch.int64))
    (layer,) = load.layer_loads(load.states)
    assert layer.counts.tolist() == [2**24 + 3, 2**33]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ExpertLoad(0), "expected num_experts of 1 or more, got 0"),
        (lambda: ExpertLoad(2).update(torch.ones(3, 1)), r"must be integers \[..., k\], got a torch.float32"),
        (
            lambda: ExpertLoad(2).update(torch.zeros(3, 1, dtype=torch.int64), torch.zeros(3, 4)),
            r"of shape \[3, 2\], got \[3, 4\]",
        ),
        (lambda: ExpertLoad(2).update_received([1], [2]), r"expected experts 0 to 1, got held=\[2\]"),
        (lambda: ExpertLoad(2).update_received([1.0], [1]), r"expected integers \[1\]"),
    ],
)
def test_bad_input_is_told(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_nothing_seen_says_nothing_and_one_expert_is_balanced():
    assert ExpertLoad(4).compute() == {}
    load = ExpertLoad(1)
    load.update(torch.zeros(5, 1, dtype=torch.int64), torch.zeros(5, 1))
    found = load.compute()
    assert (found["experts/load_entropy_min"], found["experts/routing_entropy"]) == (1.0, 0.0)
