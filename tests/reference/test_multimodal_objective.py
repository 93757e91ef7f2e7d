"""The contrastive loss against its formula in NumPy, and its shares over ranks against the whole."""

import math

import numpy as np
import pytest
import torch

from hjepa_dist_metrics import ConfigError, ProcessContext
from hjepa_dist_metrics.reference.multimodal.objective import ContrastiveObjective
from tests.helpers.ranks import run_ranks

NAMES = ["text", "image", "audio"]
DIM = 6


def embeddings(count, names=NAMES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(count, DIM, generator=generator) for name in (*names, "global")}


def info_nce(a, b, scale):
    """Symmetric InfoNCE in float64: minus the log of the softmax at the right place, both ways."""
    a, b = (
        rows.double().numpy() / np.linalg.norm(rows.double().numpy(), axis=1, keepdims=True)
        for rows in (a, b)
    )
    logits = scale * a @ b.T

    def one_way(z):
        return np.mean(np.log(np.exp(z).sum(axis=1)) - np.diag(z))

    return (one_way(logits) + one_way(logits.T)) / 2


def oracle(rows, scale, pair_weight=1.0, global_weight=0.5):
    pairs = {
        "text_image": ("text", "image"),
        "text_audio": ("text", "audio"),
        "image_audio": ("image", "audio"),
    }
    terms = {name: info_nce(rows[a], rows[b], scale) for name, (a, b) in pairs.items()}
    joint = np.mean([info_nce(rows["global"], rows[name], scale) for name in NAMES])
    total = pair_weight * np.mean(list(terms.values())) + global_weight * joint
    return {"total": total, **terms, "global_modal": joint}


def numbers(losses):
    return {name: loss.item() for name, loss in losses.items()}


def test_losses_are_the_formulas():
    rows = embeddings(9)
    objective = ContrastiveObjective(NAMES, ProcessContext.current(), pair_weight=2.0, global_weight=0.25)
    result = objective(rows, torch.tensor(5.0))
    assert numbers(result.losses) == pytest.approx(oracle(rows, 5.0, 2.0, 0.25), rel=1e-6)
    assert result.loss.item() == pytest.approx(result.losses["total"].item())
    assert result.count == 9


def test_nothing_learned_is_the_logarithm_of_the_batch():
    rows = dict.fromkeys((*NAMES, "global"), torch.ones(16, DIM))
    result = ContrastiveObjective(NAMES, ProcessContext.current(), 1.0, 0.0)(rows, torch.tensor(10.0))
    assert result.losses["total"].item() == pytest.approx(math.log(16), rel=1e-6)


@pytest.mark.parametrize("sizes", [[10], [5, 5], [4, 6], [1, 2, 3, 4]])
@pytest.mark.parametrize("known", [True, False])
def test_shares_of_ranks_add_up_in_value_and_gradient(sizes, known):
    whole = {name: rows.requires_grad_() for name, rows in embeddings(10).items()}
    scale = torch.tensor(5.0, requires_grad=True)
    ContrastiveObjective(NAMES, ProcessContext.current())(whole, scale).loss.backward()

    def body(context):
        start = sum(sizes[: context.rank])
        own = slice(start, start + sizes[context.rank])
        rows = {name: rows.detach()[own].clone().requires_grad_() for name, rows in whole.items()}
        mine = torch.tensor(5.0, requires_grad=True)
        result = ContrastiveObjective(NAMES, context)(rows, mine, sizes if known else None)
        result.loss.backward()
        return numbers(result.losses), result.count, {n: r.grad for n, r in rows.items()}, mine.grad

    results = run_ranks(len(sizes), body)
    for name, expected in oracle({name: rows.detach() for name, rows in whole.items()}, 5.0).items():
        mean = sum(losses[name] * count for losses, count, _, _ in results) / 10
        assert mean == pytest.approx(expected, rel=1e-6), name
    # DistributedDataParallel averages what the ranks' losses give: each gradient here is world_size too large
    for name, rows in whole.items():
        got = torch.cat([grads[name] for _, _, grads, _ in results]) / len(sizes)
        torch.testing.assert_close(got, rows.grad, rtol=1e-5, atol=1e-7)
    shares = torch.stack([grad for _, _, _, grad in results]).mean()
    torch.testing.assert_close(shares, scale.grad, rtol=1e-5, atol=1e-7)


def test_batches_that_do_not_match_are_named():
    objective = ContrastiveObjective(NAMES, ProcessContext.current())
    rows = {**embeddings(4), "audio": torch.ones(3, DIM)}
    with pytest.raises(ConfigError, match=r"as many rows.*'audio': \[3, 6\]"):
        objective(rows, torch.tensor(1.0))
    del rows["audio"]
    with pytest.raises(ConfigError, match=r"got \['global', 'image', 'text'\]"):
        objective(rows, torch.tensor(1.0))
