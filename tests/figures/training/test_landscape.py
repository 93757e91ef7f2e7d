"""The loss landscape: a surface known in closed form, the same at any world size, weights as before."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.figures import loss_landscape, visualize_loss_landscape
from tests.helpers.ranks import run_ranks


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 2))


DATA = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))


def noisy_loss(model: nn.Module) -> torch.Tensor:
    return model(DATA).square().mean()


@torch.no_grad()
def squared_norm(model: nn.Module) -> torch.Tensor:
    return sum(p.double().square().sum() for p in model.parameters())


def test_the_norm_is_a_paraboloid_in_filter_units():
    """|w + a d|^2 = |w|^2 + 2 a w.d + a^2 |w|^2 over matrices, because each filter of d is as long as w's."""
    model = nn.Linear(6, 8, bias=False)
    found = loss_landscape(model, squared_norm, points=5, span=2.0)
    norm = float(squared_norm(model))
    assert found.loss[2, 2] == norm
    np.testing.assert_array_equal(found.x, [-2, -1, 0, 1, 2])
    across, up = found.loss[2], found.loss[:, 2]
    for line in (across, up):
        assert line[4] + line[0] - 2 * norm == pytest.approx(8 * norm, rel=1e-5)
        assert line[3] + line[1] - 2 * norm == pytest.approx(2 * norm, rel=1e-5)
    assert across[4] != pytest.approx(up[4])


def test_vectors_stay_where_they_are():
    model = nn.Linear(3, 2)
    found = loss_landscape(model, lambda m: m.bias.sum(), points=3)
    np.testing.assert_array_equal(found.loss, np.full((3, 3), float(model.bias.detach().sum())))


@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_ranks_draws_the_same_picture(world_size: int):
    wanted = loss_landscape(network(), noisy_loss, points=5)
    models = [network() for _ in range(world_size)]
    alone = np.full(25, np.nan)
    # One after the other: threads share the random state that every point starts from, processes do not.
    for rank in range(world_size):
        seen: list[float] = []
        mine = range(rank, 25, world_size)
        loss_landscape(
            models[rank], lambda m, seen=seen: seen.append(float(noisy_loss(m))) or seen[-1], points=5
        )
        alone[list(mine)] = np.asarray(seen)[list(mine)]
    np.testing.assert_array_equal(alone.reshape(5, 5), wanted.loss)

    def body(context):
        model = nn.Linear(6, 8, bias=False)
        with torch.no_grad():
            model.weight.copy_(torch.arange(48.0).reshape(8, 6))
        return loss_landscape(model, squared_norm, points=5, context=context).loss

    whole = body(None)
    for loss in run_ranks(world_size, body):
        np.testing.assert_array_equal(loss, whole)


def landscape_of_rank() -> np.ndarray:
    return loss_landscape(network(), noisy_loss, points=4).loss


def test_two_processes_draw_what_one_does(gloo):
    for loss in gloo(2).run(landscape_of_rank):
        np.testing.assert_array_equal(loss, landscape_of_rank())


@pytest.mark.parametrize("fails", [False, True])
def test_weights_buffers_and_random_state_are_bit_identical_afterwards(fails: bool):
    model = network()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    calls = 0

    def loss(m: nn.Module) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if fails and calls == 4:
            raise RuntimeError("out of luck")
        return noisy_loss(m)

    if fails:
        with pytest.raises(RuntimeError, match="out of luck"):
            loss_landscape(model, loss, points=3)
    else:
        loss_landscape(model, loss, points=3)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training


def test_the_figure_shows_contours_a_surface_and_the_weights():
    reports: list[tuple[int, int]] = []
    figure = visualize_loss_landscape(
        nn.Linear(4, 4), squared_norm, points=5, progress=lambda done, total: reports.append((done, total))
    )
    assert reports == [(n, 25) for n in range(1, 26)]
    contour = figure.axes[0]
    (surface,) = [ax for ax in figure.axes if ax.name == "3d"]
    assert contour.get_xlim() == contour.get_ylim() == (-1, 1)
    (star,) = contour.lines
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (0, 0)
    assert surface.get_zlabel() == "loss"
    assert "loss" in [ax.get_ylabel() for ax in figure.axes]
    only = visualize_loss_landscape(nn.Linear(4, 4), squared_norm, points=3, mode="surface")
    assert [ax.name for ax in only.axes] == ["3d"]


def test_points_without_a_finite_loss_stay_white():
    figure = visualize_loss_landscape(
        nn.Linear(4, 4),
        lambda m: float("nan") if float(m.weight.detach()[0, 0]) > 0 else squared_norm(m),
        points=5,
    )
    figure.canvas.draw()


def test_bad_requests_are_told():
    with pytest.raises(ConfigError, match="3 or more points and a span above 0, got 2"):
        loss_landscape(network(), noisy_loss, points=2)
    with pytest.raises(ConfigError, match="no floating-point parameters"):
        loss_landscape(nn.ReLU(), noisy_loss)
    with pytest.raises(ConfigError, match="mode is 'flat'"):
        visualize_loss_landscape(network(), noisy_loss, mode="flat")
