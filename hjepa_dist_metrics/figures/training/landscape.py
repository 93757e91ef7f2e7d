"""The loss around a model's weights along two filter-normalised directions (Li et al. 2018, 1712.09913)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.figures.canvas import PRINT_DPI, FigureSize, colour_bar, finish, new_figure
from hjepa_dist_metrics.figures.gather import gather_rows
from hjepa_dist_metrics.figures.inputs import Floats
from hjepa_dist_metrics.figures.style import COLOURS, LABEL_SIZE, SEQUENTIAL, TICK_SIZE, describe
from hjepa_dist_metrics.parallel import ProcessContext

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LossFunction = Callable[[nn.Module], Tensor | float]
Progress = Callable[[int, int], None]
Mode = Literal["contour", "surface", "both"]


class Landscape(NamedTuple):
    """Hold the loss on a grid: `loss[i, j]` at weights + x[j] * first + y[i] * second direction."""

    x: Floats
    y: Floats
    loss: Floats


def visualize_loss_landscape(
    model: nn.Module,
    loss_function: LossFunction,
    *,
    points: int = 21,
    span: float = 1.0,
    mode: Mode = "both",
    seed: int = 0,
    context: ProcessContext | None = None,
    progress: bool | Progress = True,
    cmap: str = SEQUENTIAL,
    figsize: FigureSize | None = None,
    save_path: str | Path | None = None,
    dpi: int = PRINT_DPI,
) -> Figure:
    """Draw the loss around the model's weights as contours, as a surface, or both (see `loss_landscape`).

    A collective call with more than one rank: every rank gets the figure, the main one saves. Points where
    the loss is not finite stay white.
    """
    if mode not in ("contour", "surface", "both"):
        raise ConfigError(f"mode is {mode!r}; allowed: 'contour', 'surface', 'both'")
    place = context or ProcessContext.current()
    found = loss_landscape(
        model, loss_function, points=points, span=span, seed=seed, context=place, progress=progress
    )
    shown = [kind for kind in ("contour", "surface") if mode in (kind, "both")]
    # The surface gets more room: a projection fills little of its panel.
    figure = new_figure(figsize, (9.0, 4.2) if len(shown) == 2 else (9.0, 6.5))
    places = figure.add_gridspec(1, len(shown), width_ratios=[1.0, 1.15][: len(shown)])
    for number, kind in enumerate(shown):
        if kind == "contour":
            _draw_contours(figure, figure.add_subplot(places[number]), found, cmap)
        else:
            _draw_surface(figure.add_subplot(places[number], projection="3d"), found, cmap)
    return finish(
        figure, f"Loss landscape, {points}x{points} points", save_path if place.is_main else None, dpi
    )


def loss_landscape(
    model: nn.Module,
    loss_function: LossFunction,
    *,
    points: int = 21,
    span: float = 1.0,
    seed: int = 0,
    context: ProcessContext | None = None,
    progress: bool | Progress = False,
) -> Landscape:
    """Evaluate `loss_function(model)` on a grid of points x points within +-span of the weights.

    The ranks share the points out, and each draws the same directions from `seed`, so that the result does
    not depend on their number. Every point starts from the same random state. The loss must be local (no
    collective) and the same function on every rank; the model comes unwrapped from DDP. Weights, buffers and
    random state are restored bit for bit, also after an error.
    """
    if points < 3 or not span > 0:
        raise ConfigError(f"a landscape needs 3 or more points and a span above 0, got {points} and {span!r}")
    place = context or ProcessContext.current()
    inner = model.module if isinstance(getattr(model, "module", None), nn.Module) else model
    assert isinstance(inner, nn.Module)
    first, second = _directions(inner, seed), _directions(inner, seed + 1)
    if not first:
        raise ConfigError("the model has no floating-point parameters to move")
    steps = np.linspace(-span, span, points)
    mine = range(place.rank, points * points, place.world_size)
    report = _reporter(progress, place.is_main)
    rows = []
    with _restored(inner) as (weights, reset):
        for done, number in enumerate(mine, start=1):
            a, b = steps[number % points], steps[number // points]
            for name, parameter in inner.named_parameters():
                if name in first:
                    parameter.data.copy_(weights[name] + a * first[name] + b * second[name])
            torch.manual_seed(seed)
            loss = loss_function(inner)
            rows.append((number, loss.item() if isinstance(loss, Tensor) else float(loss)))
            reset()
            report(done, len(mine))
    merged = gather_rows(np.asarray(rows, dtype=np.float64).reshape(-1, 2), place)
    values = np.full(points * points, np.nan)
    values[merged[:, 0].astype(int)] = merged[:, 1]
    return Landscape(steps, steps, values.reshape(points, points))


def _directions(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Return a random direction for each parameter, each filter (row of dimension 0) as long as the weights'.

    Parameters of one dimension, biases and norms, stay where they are.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    directions = {}
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            continue
        noise = torch.randn(parameter.shape, generator=generator).to(parameter.device, parameter.dtype)
        if parameter.ndim <= 1:
            noise = torch.zeros_like(noise)
        else:
            own, drawn = (t.detach().flatten(1).norm(dim=1) for t in (parameter, noise))
            noise = noise * (own / (drawn + 1e-10)).view(-1, *[1] * (noise.ndim - 1))
        directions[name] = noise
    return directions


@contextmanager
def _restored(model: nn.Module) -> Iterator[tuple[dict[str, Tensor], Callable[[], None]]]:
    """Yield the weights and a function that resets the buffers; put everything back at the end."""
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    buffers = {name: b.detach().clone() for name, b in model.named_buffers()}

    def reset_buffers() -> None:
        for name, buffer in model.named_buffers():
            buffer.data.copy_(buffers[name])

    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.no_grad(), torch.random.fork_rng(devices):
        try:
            yield weights, reset_buffers
        finally:
            for name, parameter in model.named_parameters():
                parameter.data.copy_(weights[name])
            reset_buffers()


def _draw_contours(figure: Figure, ax: Axes, found: Landscape, cmap: str) -> None:
    values = np.ma.masked_invalid(found.loss)
    filled = ax.contourf(found.x, found.y, values, levels=20, cmap=cmap)
    ax.contour(found.x, found.y, values, levels=20, colors="white", linewidths=0.4)
    ax.plot(0, 0, marker="*", ms=13, color=COLOURS[1], markeredgecolor="white")
    ax.set_aspect("equal")
    ax.locator_params(nbins=5)
    colour_bar(figure, filled, ax, "loss")
    describe(ax, "star: the model's weights", "direction 1 (filter norms)", "direction 2 (filter norms)")


def _draw_surface(ax: Any, found: Landscape, cmap: str) -> None:
    x, y = np.meshgrid(found.x, found.y)
    values = np.where(np.isfinite(found.loss), found.loss, np.nan)
    ax.plot_surface(x, y, values, cmap=cmap, rstride=1, cstride=1, linewidth=0, antialiased=True)
    ax.locator_params(nbins=4)
    describe(ax, "", "direction 1", "direction 2")
    ax.tick_params(labelsize=TICK_SIZE)
    ax.set_zlabel("loss", fontsize=LABEL_SIZE)
    ax.view_init(elev=28, azim=-50)


def _reporter(progress: bool | Progress, is_main: bool) -> Progress:
    """Return what to call after each point: the caller's own, a line on a terminal's stderr, or nothing."""
    if callable(progress):
        return progress
    if not (progress and is_main and sys.stderr.isatty()):
        return lambda done, total: None

    def show(done: int, total: int) -> None:
        bar = "#" * (30 * done // total)
        end = "\n" if done == total else ""
        print(f"\rloss landscape [{bar:<30}] {done}/{total}", end=end, file=sys.stderr, flush=True)

    return show
