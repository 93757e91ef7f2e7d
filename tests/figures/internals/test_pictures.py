"""Pictures of the inside of a model show the numbers that they are given."""

import numpy as np
import pytest

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.figures.internals.pictures import activation_depth, expert_map, head_maps


def test_each_stack_of_blocks_has_a_line_over_depth():
    rms = {f"encoder.blocks.{i}": 2.0**i for i in range(12)} | {
        "predictor.blocks.0": 3.0,
        "predictor.blocks.1": 5.0,
    }
    figure = activation_depth(rms, {name: 10 * value for name, value in rms.items()})
    left, right = figure.axes
    lines = {line.get_label(): line.get_ydata().tolist() for line in left.lines}
    assert lines == {"encoder.blocks.*": [2.0**i for i in range(12)], "predictor.blocks.*": [3.0, 5.0]}
    assert right.lines[1].get_ydata().tolist() == [30.0, 50.0]
    assert left.get_yscale() == "log"


def test_heads_are_rows_of_layers_and_missing_ones_stay_white():
    numbers = {"entropy": {"a": [1.0, 2.0, 3.0], "b": [4.0]}, "logit": {"a": [5.0], "b": [6.0]}}
    figure = head_maps(numbers)
    panels = [ax for ax in figure.axes if ax.images and ax.get_title()]
    assert [ax.get_title() for ax in panels] == ["entropy", "logit"]
    shown = panels[0].images[0].get_array()
    np.testing.assert_array_equal(shown.mask, [[False, False, False], [False, True, True]])
    np.testing.assert_array_equal(shown[0], [1.0, 2.0, 3.0])
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["a", "b"]


def test_many_layers_are_named_in_part():
    figure = expert_map({f"layers.{i}": [1.0, 1.0] for i in range(90)})
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[:2] == ["layers.0", "layers.3"]
    assert len(labels) == 30


def test_nothing_cannot_be_drawn():
    with pytest.raises(ConfigError, match="at least one quantity"):
        head_maps({})
    with pytest.raises(ConfigError, match="at least one layer"):
        expert_map({})
