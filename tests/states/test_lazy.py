import json

import pytest
import torch

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.states import Lazy, Moments, State, Sum, of_width, resolved


def blank():
    return Lazy(Sum, {"shape": [Lazy.WIDTH]})


def fed(*rows):
    state = blank()
    for row in rows:
        state.update(torch.tensor([row]))
    return state


def test_the_width_comes_with_the_first_rows():
    state = blank()
    assert resolved(state) is None
    state.update(torch.zeros((0, 5)))  # no rows say nothing
    assert resolved(state) is None
    state.update(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert resolved(state).value.tolist() == [4.0, 6.0]
    with pytest.raises(ConfigError, match=r"width 2, got shape \[1, 3\]"):
        state.update(torch.ones(1, 3))
    with pytest.raises(ConfigError, match="at least one number"):
        state.update(torch.tensor(1.0))


def test_merging_leaves_both_apart():
    one, other, nothing = fed([1.0, 2.0]), fed([10.0, 20.0]), blank()
    for merged, expected in (
        (one.merge(other), [11.0, 22.0]),
        (one.merge(nothing), [1.0, 2.0]),
        (nothing.merge(one), [1.0, 2.0]),
    ):
        assert resolved(merged).value.tolist() == expected
        merged.update(torch.ones(1, 2))
    assert resolved(one).value.tolist() == [1.0, 2.0]
    assert resolved(other).value.tolist() == [10.0, 20.0]
    assert resolved(nothing) is None
    with pytest.raises(ConfigError, match="cannot merge"):
        one.merge(fed([1.0, 2.0, 3.0]))
    with pytest.raises(ConfigError, match=r"Lazy\[Moments\[1\]\]"):
        one.merge(Lazy(Moments, {"shape": [Lazy.WIDTH]}))


@pytest.mark.parametrize("state", [fed([1.0, 2.0]), blank()])
def test_packed_and_unpacked_it_is_the_same(state):
    copy = blank().unpack(state.pack())
    assert {name: t.tolist() for name, t in copy.pack().items()} == {
        name: t.tolist() for name, t in state.pack().items()
    }
    copy.update(torch.ones(1, 2))
    assert state.signature == copy.signature == state.empty().signature


def test_a_known_width_needs_no_wrapper():
    assert isinstance(of_width(3, Sum, shape=[Lazy.WIDTH]), Sum)
    assert isinstance(of_width(None, Sum, shape=[Lazy.WIDTH]), Lazy)


def test_it_is_made_again_from_its_parameters():
    state = fed([1.0, 2.0])
    made = State.kinds[state.kind()](**json.loads(json.dumps(state.parameters)))
    assert made.signature == state.signature
    assert resolved(made.merge(state)).value.tolist() == [1.0, 2.0]
    compact = state.expand(state.compact(state.pack()))
    assert resolved(made.adopt(compact)).value.tolist() == [1.0, 2.0]
