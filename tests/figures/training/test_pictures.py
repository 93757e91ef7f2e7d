"""Training pictures draw the logs' own numbers, on axes that say what they are."""

import numpy as np
import pytest
import torch
from torch import nn

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.figures import (
    plot_collapse_metrics,
    plot_ema_momentum,
    plot_hierarchical_losses,
    plot_probes,
    plot_training_curves,
    smooth,
    visualize_gradient_flow,
)
from hjepa_dist_metrics.figures.training.stragglers import straggler_map

STEPS = np.arange(6.0) * 10


def curves(ax) -> dict[str, np.ndarray]:
    return {line.get_label(): np.asarray(line.get_ydata()) for line in ax.lines}


def test_the_quick_example_works():
    figure = plot_training_curves({"train_loss": [3.0, 2.0, 1.0], "val_loss": [3.5, 2.5, 1.5]}, smoothing=0.0)
    (ax,) = figure.axes
    drawn = curves(ax)
    np.testing.assert_array_equal(drawn["train_loss"], [3, 2, 1])
    np.testing.assert_array_equal(drawn["val_loss"], [3.5, 2.5, 1.5])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "loss")


@pytest.mark.parametrize(("count", "last"), [(10, "run9"), (11, "and 2 more"), (45, "and 36 more")])
def test_the_legend_of_many_runs_leaves_room_for_the_curves(count, last):
    logs = {f"run{i}": {"loss/total": (STEPS, np.linspace(2, 1, 6) + i)} for i in range(count)}
    (ax,) = plot_training_curves(logs, smoothing=0.0).axes
    named = [text.get_text() for text in ax.get_legend().get_texts()]
    assert len(ax.lines) == count
    assert len(named) == 10
    assert (named[0], named[-1]) == ("run0", last)
    box = ax.get_legend().get_window_extent().transformed(ax.transAxes.inverted())
    assert box.height < 0.9


MANY = np.arange(80.0) * 5
NOISY = np.exp(-MANY / 100) + 0.05 * np.sin(17 * MANY)


def test_runs_are_overlaid_and_smoothed():
    logs = {run: {"loss/total": (MANY, NOISY * f)} for run, f in (("a", 1), ("b", 2))}
    figure = plot_training_curves(logs, smoothing=0.6)
    raw_a, smooth_a, raw_b, smooth_b = figure.axes[0].lines
    np.testing.assert_array_equal(raw_a.get_ydata(), NOISY)
    np.testing.assert_array_equal(smooth_a.get_ydata(), smooth(NOISY, 0.6, MANY))
    assert raw_a.get_color() == smooth_a.get_color() != smooth_b.get_color() == raw_b.get_color()
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == ["a", "b"]
    assert "smoothing 0.6" in figure.get_suptitle()


def test_raw_values_are_drawn_by_default():
    figure = plot_training_curves({"loss/total": (MANY, NOISY)})
    (line,) = figure.axes[0].lines
    np.testing.assert_array_equal(line.get_ydata(), NOISY)
    assert line.get_alpha() is None
    assert figure.get_suptitle() == "Training curves"


@pytest.mark.parametrize(
    "tag",
    [
        *(
            "learning_rate/base_lr",
            "train/lr",
            "ema/momentum_current",
            "train/ema_momentum",
            "Train/learning_rate",
        ),
        "few/points",
    ],
)
def test_schedules_and_series_of_few_points_are_never_smoothed(tag):
    count = 49 if tag == "few/points" else 80
    figure = plot_training_curves({tag: (MANY[:count], NOISY[:count])}, [tag], smoothing=0.9)
    (line,) = figure.axes[0].lines
    np.testing.assert_array_equal(line.get_ydata(), NOISY[:count])
    assert figure.get_suptitle() == "Training curves"


def test_a_loss_that_is_logged_rarely_does_not_lag_behind_its_curve():
    """Both series are one falling curve, and stay one when they are smoothed."""
    dense, sparse = np.arange(2001.0), np.arange(0.0, 2001.0, 20.0)
    logs = {"train/loss": (dense, np.exp(-dense / 400)), "val/loss": (sparse, np.exp(-sparse / 400))}
    figure = plot_training_curves(logs, smoothing=0.9)
    drawn = curves(figure.axes[0])
    assert len(drawn["val/loss"]) == 101
    # of either, the mean of what lies within about ten two-hundredths of the run
    np.testing.assert_allclose(drawn["val/loss"], drawn["train/loss"][::20], rtol=0.03)


def test_wide_ranges_get_a_logarithmic_axis():
    figure = plot_training_curves({"a": [1.0, 1e-3], "b": [1.0, 0.5], "c": [1.0, -1e-9]}, ["a", "b", "c"])
    assert [ax.get_yscale() for ax in figure.axes] == ["log", "linear", "linear"]


def test_levels_and_their_shares():
    logs = {
        "loss/h0": (STEPS, np.full(6, 3.0)),
        "loss/h1": (STEPS[::2], np.full(3, 1.0)),
        "loss/total": [1.0],
    }
    figure = plot_hierarchical_losses(logs, smoothing=0.0)
    lines, shares = figure.axes
    assert set(curves(lines)) == {"level 0", "level 1"}
    bottom = shares.collections[0].get_paths()[0].vertices
    assert bottom[:, 1].max() == pytest.approx(75)
    assert set(bottom[:, 0]) == {0, 20, 40}
    assert shares.get_ylim() == (0, 100)


def test_collapse_metrics_find_their_tags():
    logs = {
        "collapse/effective_rank": [5.0, 6.0],
        "collapse/mean_similarity": [0.9, 0.2],
        "loss/total": [1.0],
    }
    figure = plot_collapse_metrics(logs)
    assert [ax.get_title() for ax in figure.axes] == ["collapse/effective_rank", "collapse/mean_similarity"]
    assert figure.axes[0].get_ylim()[0] == 0
    assert figure.axes[1].get_ylim() == (-0.05, 1.05)
    level = plot_collapse_metrics({"collapse/level0_effective_rank": [2.0]}, name="level0")
    assert level.axes[0].lines[0].get_marker() == "o"  # one point is no line


def test_probes_stand_beside_the_loss():
    logs = {
        "probe/encoder_linear_top1": [0.2, 0.6],
        "probe/val_encoder_knn_top1": [0.5],
        "probe/encoder_linear_loss": [2.0, 1.0],
        "loss/total": [3.0, 1.0],
    }
    figure = plot_probes(logs)
    assert [ax.get_title() for ax in figure.axes] == ["probes", "loss/total"]
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert labels == ["encoder linear", "val encoder knn"]
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), [0.2, 0.6])
    assert len(plot_probes({"probe/a_knn_top1": [0.1, 0.2]}).axes) == 1


def test_collapse_panels_have_the_limits_of_the_runs_sizes():
    logs = {
        "collapse/effective_rank": [5.0, 36.0],
        "collapse/mean_similarity": [0.9, 0.2],
        "collapse/min_std_per_dim": [0.1, 0.2],
        "collapse/num_features": [64.0],
        "collapse/num_samples": [2048.0],
    }
    rank, similarity, spread = plot_collapse_metrics(logs).axes
    assert [text.get_text() for text in rank.texts] == ["healthy: above 16", "collapse: below 3.2"]
    assert [text.get_text() for text in similarity.texts] == ["healthy: below 0.5", "collapse: above 0.9"]
    assert [line.get_ydata()[0] for line in rank.lines[1:]] == [16.0, 3.2]
    assert len(spread.texts) == 0
    sizes = {"collapse/num_features": [128.0], "collapse/num_samples": [2048.0]}
    figure = plot_collapse_metrics({"a": logs, "b": logs | sizes})
    assert len(figure.axes[0].texts) == 0  # the runs have different limits
    assert len(figure.axes[1].texts) == 2


def test_the_straggler_map_has_ranks_and_steps_on_its_axes():
    own = np.array([[1.0, 1.0, 0.0], [1.0, 1.5, 0.0], [3.0, 1.0, 0.0]])
    figure = straggler_map(own, [4, 5, 7])
    ax, bar = figure.axes
    (image,) = ax.images
    np.testing.assert_allclose(image.get_array(), [[0, 0, 0], [0, 50, 0], [200, 0, 0]])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["4", "5", "7"]
    assert ax.get_xlim() == (-2.5, 0.5)
    assert (ax.get_ylabel(), bar.get_ylabel()) == ("rank", "slower than the\nfastest rank (%)")
    many = straggler_map(np.ones((200, 32)), range(200))
    assert [t.get_text() for t in many.axes[0].get_yticklabels()] == ["0", "199"]
    assert many.get_figheight() <= 8


def test_momentum_and_its_memory():
    figure = plot_ema_momentum([0.99, 0.995, 1.0])
    (ax,) = figure.axes
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0.99, 0.995, 1.0])
    figure.canvas.draw()
    memory = ax.child_axes[0]
    ticks = dict(zip(memory.get_yticks(), [t.get_text() for t in memory.get_yticklabels()], strict=True))
    assert ticks[1.0] == "∞"
    assert all(text == f"{1 / (1 - at):,.0f}" for at, text in ticks.items() if at < 1)
    assert ax.get_ylim()[1] < 1.001


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def test_gradients_are_the_models():
    model = network()
    model(torch.ones(5, 4)).square().mean().backward()
    figure = visualize_gradient_flow(model)
    flow, spread = figure.axes
    top, mean = flow.containers[:2]
    gradients = [p.grad.abs().double() for p in model.parameters()]
    np.testing.assert_allclose([bar.get_height() for bar in top], [g.max() for g in gradients])
    np.testing.assert_allclose([bar.get_height() for bar in mean], [g.mean() for g in gradients])
    assert [t.get_text() for t in flow.get_xticklabels()] == [name for name, _ in model.named_parameters()]
    assert flow.get_yscale() == "log"
    assert spread.get_title().startswith("all 23 elements (0.0 %")


def test_dead_parameters_are_marked():
    figure = visualize_gradient_flow({"alive": torch.ones(3), "dead": torch.zeros(3)})
    (crosses,) = figure.axes[0].collections
    assert np.asarray(crosses.get_offsets())[:, 0].tolist() == [1]
    assert "50.0 % are zero" in figure.axes[1].get_title()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot_training_curves({}), "at least one tag"),
        (lambda: plot_training_curves({"a": [1.0]}, ["b"]), r"no such tag \(b\); they have a"),
        (lambda: plot_hierarchical_losses({"a": [1.0]}), "no loss by level"),
        (lambda: plot_collapse_metrics({"a": [1.0]}), "no collapse metric"),
        (lambda: plot_ema_momentum({"a": [1.0]}), "no momentum"),
        (lambda: plot_probes({"a": [1.0]}), "no accuracy of a probe"),
        (lambda: plot_ema_momentum([0.5, 1.5]), r"leaves \[0, 1\]: 0.5 to 1.5"),
        (lambda: visualize_gradient_flow(network()), "no parameter has a gradient"),
        (lambda: visualize_gradient_flow({"w": torch.tensor([1.0, np.nan])}), "gradient of 'w' has values"),
    ],
)
def test_bad_logs_and_models_are_told(call, message: str):
    with pytest.raises(ConfigError, match=message):
        call()
