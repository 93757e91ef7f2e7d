"""Recent samples: the same for every split, each row once, newer rows rather than older ones."""

import pytest
import torch
from hypothesis import given
from scipy.stats import chisquare

from hjepa_dist_metrics import ConfigError
from hjepa_dist_metrics.states import RecentSample
from tests.helpers.splits import merged_over, splits, total

DATA = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(200) % 7


def kept(state):
    return {name: tensor.tolist() for name, tensor in state.pack().items() if name != "priority"}


@pytest.mark.parametrize("with_ids", [True, False])
@given(split=splits())
def test_any_split_keeps_the_same_rows(with_ids, split):
    def feed(state, piece):
        ids = torch.arange(200)[piece] if with_ids else None
        state.update(DATA[piece], LABELS[piece], DATA[piece, 0] > -1.0, ids, step=3)

    whole = RecentSample(9, 3, half_life=2.0)
    feed(whole, slice(0, total(split)))
    assert kept(merged_over(split, lambda: RecentSample(9, 3, half_life=2.0), feed)) == kept(whole)


def test_a_row_that_comes_again_takes_its_own_place():
    state, ids = RecentSample(50, 3, half_life=10.0), torch.arange(20)
    for step in range(4):
        state.update(DATA[:20] + step, LABELS[:20], ids=ids, step=step)
    assert len(state.rows) == 20
    order = torch.sort(state.rows[:, 0]).indices
    newest = DATA[:20] + 3
    assert torch.equal(state.rows[order], newest[torch.sort(newest[:, 0]).indices])
    other = RecentSample(50, 3, half_life=10.0)
    other.update(DATA[:20], LABELS[:20], ids=ids, step=1)
    assert kept(other.merge(state)) == kept(state) == kept(state.merge(other))


def test_rows_without_ids_are_one_where_they_and_their_labels_are_equal():
    state = RecentSample(50, 3)
    state.update(torch.ones(4, 3), torch.tensor([1, 1, 2, 2]))
    assert sorted(state.labels.tolist()) == [1, 2]


def test_a_row_of_a_half_life_ago_is_half_as_likely():
    counts = torch.zeros(3)
    for seed in range(400):
        state = RecentSample(10, 1, half_life=5.0, seed=seed)
        for step in (0, 5, 10):
            state.update(
                torch.full((200, 1), float(step)), torch.zeros(200).long(), ids=ids_of(step), step=step
            )
        counts += torch.tensor([float((state.rows == step).sum()) for step in (0, 5, 10)])
    assert counts.sum() == 4000
    assert chisquare(counts / counts.sum() * 4000, [4000 / 7, 8000 / 7, 16000 / 7]).pvalue > 1e-4


def ids_of(step):
    return torch.arange(200) + 1000 * step


def test_by_default_steps_do_not_matter():
    late, early = RecentSample(10, 3), RecentSample(10, 3)
    early.update(DATA, LABELS, ids=torch.arange(200))
    late.update(DATA, LABELS, ids=torch.arange(200), step=1000)
    assert kept(late) == kept(early)


def test_it_says_what_does_not_fit():
    for arguments in ((0, 1), (1, 0), (1, 1, 0.0)):
        with pytest.raises(ConfigError, match="half-life"):
            RecentSample(*arguments)
    state = RecentSample(4, 3)
    with pytest.raises(ConfigError, match=r"rows \[N, 3\]"):
        state.update(torch.zeros(2, 2), torch.zeros(2).long())
    with pytest.raises(ConfigError, match="a label for each of 2"):
        state.update(torch.zeros(2, 3), torch.zeros(3).long())
    with pytest.raises(ConfigError, match="an id for each of 2"):
        state.update(torch.zeros(2, 3), torch.zeros(2).long(), ids=torch.zeros(3).long())
