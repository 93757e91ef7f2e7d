"""Votes against a count of the ranks' keys."""

from collections import Counter

import pytest
import torch
from hypothesis import given, strategies as st

from hjepa_dist_metrics.states.ranks.votes import Votes
from tests.helpers.simulated import block_of, simulate


def vote(key, kind=7, step=3):
    votes = Votes()
    votes.update(torch.tensor(key), kind, step)
    return votes


def merged(ranks):
    """Merge the ranks' votes over the tree of a sync; the result is the same on every rank."""
    results, _ = simulate([block_of(rank, {"m.votes": votes}) for rank, votes in enumerate(ranks)])
    return results[0].payload.others["m.votes"].verdict


def expected(keys):
    """Return how many ranks hold another key than most do, and the first of them."""
    counts = Counter(keys)
    most = max(counts, key=lambda key: (counts[key], -keys.index(key)))
    others = [rank for rank, key in enumerate(keys) if key != most]
    return len(keys), len(others), min(others, default=None)


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=2)
    | st.lists(st.integers(0, 3), min_size=2, max_size=40)
)
def test_the_ranks_that_differ_from_most(keys):
    assert merged([vote(key) for key in keys]) == expected(keys)


@given(st.integers(9, 60))
def test_all_ranks_differ(ranks):
    """Of more keys than are kept, all but the ranks of one are counted as different."""
    found = merged([vote(1000 + rank) for rank in range(ranks)])
    assert found.ranks == ranks
    assert found.different == ranks - 1
    assert found.first in (0, 1)


def test_many_keys_beside_one_that_most_ranks_hold():
    keys = [rank if rank % 3 == 0 else -1 for rank in range(60)]
    assert merged([vote(key) for key in keys]) == (60, 20, 0)


def test_other_kinds_earlier_steps_and_single_ranks_give_no_verdict():
    assert merged([vote(1, kind=1), vote(1, kind=2)]) is None
    assert merged([vote(rank, kind=rank % 3) for rank in range(40)]) is None
    assert merged([vote(1, step=2), vote(2, step=3)]) is None
    assert merged([vote(1, step=2), vote(2, step=3), vote(2, step=3)]) == (2, 0, None)
    assert merged([vote(1), Votes()]) is None
    assert merged([Votes(), Votes()]) is None


def test_of_one_rank_the_later_key_counts():
    assert vote(1).merge(vote(2)).pack()["rows"][0, 2] == 2
    assert vote(1).merge(Votes()).pack()["rows"][0, 2] == 1
    assert merged([vote(1).merge(vote(2)), vote(2)]) == (2, 0, None)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_merged_state_is_no_vote_of_the_rank_that_loads_it(ranks):
    state = vote(1)
    if ranks > 1:
        state = state.signed(0, 1).merge(vote(1).signed(1, 1))
    loaded = Votes().unpack(state.pack())
    assert loaded.is_empty == (ranks > 1)
