"""Rows of all ranks with gradients: the loss of a global batch and its gradients are those of one process."""

import pytest
import torch
from torch.nn import functional as F

from hjepa_dist_metrics import ConfigError, ProcessContext
from hjepa_dist_metrics.parallel import gather_rows
from tests.helpers.ranks import run_ranks

DIM = 5


def rows(count):
    return torch.randn(count, 2, DIM, generator=torch.Generator().manual_seed(count), dtype=torch.float64)


def contrast(own, everything, start):
    """This rank's share of the symmetric contrastive loss over all rows."""
    target = torch.arange(len(own)) + start
    terms = [F.cross_entropy(own[:, m] @ everything[:, 1 - m].T, target, reduction="sum") for m in (0, 1)]
    return (terms[0] + terms[1]) / (2 * len(everything))


def share(context, sizes, given):
    start = sum(sizes[: context.rank])
    mine = rows(sum(sizes))[start : start + sizes[context.rank]].clone().requires_grad_()
    loss = contrast(mine, gather_rows(mine, context, sizes if given else None), start)
    loss.backward()
    return loss.item(), mine.grad


@pytest.mark.parametrize("sizes", [[7], [4, 4], [3, 5], [2, 0, 6], [1, 2, 3, 4]])
@pytest.mark.parametrize("given", [True, False])
def test_shares_and_gradients_are_those_of_one_process(sizes, given):
    whole = rows(sum(sizes)).requires_grad_()
    expected = contrast(whole, whole, 0)
    expected.backward()
    results = run_ranks(len(sizes), lambda context: share(context, sizes, given))
    assert sum(loss for loss, _ in results) == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.cat([grad for _, grad in results]), whole.grad, rtol=1e-10, atol=1e-14)


def share_of_process(sizes):
    return share(ProcessContext.current(), sizes, given=False)


def test_over_real_processes(gloo):
    sizes = [3, 5]
    whole = rows(8).requires_grad_()
    contrast(whole, whole, 0).backward()
    results = gloo(2).run(share_of_process, sizes)
    torch.testing.assert_close(torch.cat([grad for _, grad in results]), whole.grad, rtol=1e-10, atol=1e-14)


def test_wrong_sizes_are_an_error_before_anything_is_sent():
    context = ProcessContext.current()
    with pytest.raises(ConfigError, match=r"sizes of 1 ranks, 4 for rank 0, got \[3\]"):
        gather_rows(torch.ones(4, 2), context, [3])
    with pytest.raises(ConfigError, match=r"got \[4, 4\]"):
        gather_rows(torch.ones(4, 2), context, [4, 4])
