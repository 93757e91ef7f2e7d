"""The last steps of a job, whoever tells of them and how often."""

import math

import numpy as np
import pytest
import torch

from hjepa_dist_metrics.states import StepWindow


def told(parts):
    state = StepWindow(4)
    for step, value, count in parts:
        state.update(step, value, count)
    return state


def test_parts_of_a_step_are_added_on_one_rank_as_over_ranks():
    parts = [(4, 1.0, 2), (5, 3.0, 1), (4, 4.0, 1), (5, math.nan, 0), (5, 5.0, 3)]
    together = told(parts)
    apart = told(parts[:2]).merge(told(parts[2:]))
    for state in (together, apart):
        assert state.steps.tolist() == [4, 5]
        np.testing.assert_allclose(state.means, [(2 * 1 + 4) / 3, (3 + 3 * 5) / 4], rtol=1e-15)


def test_a_later_step_takes_the_place_of_an_earlier_one():
    state = told([(1, 1.0, 2), (5, 3.0, 1)])
    assert (state.steps.tolist(), state.means.tolist(), state.latest) == ([5], [3.0], 5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays(value):
    state = told([(0, torch.tensor(value), 1), (0, 1.0, 1)])
    assert not np.isfinite(state.means[0])
