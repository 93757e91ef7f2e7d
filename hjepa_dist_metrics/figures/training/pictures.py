"""Pictures of a training run: curves, losses by level, gradients, collapse, momentum, the loss landscape.

`logs` is what `load_training_logs` returns, or {tag: values}, or {tag: (steps, values)}, or such mappings by
run; several runs are overlaid. `smoothing`, from 0 (none) to below 1, is the weight that a value keeps after
half a percent of the steps; schedules, momenta and series of fewer than 50 points are never smoothed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from hjepa_dist_metrics.catalog import Limits
from hjepa_dist_metrics.catalog.run_limits import limits_of
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.figures.canvas import PRINT_DPI, FigureSize, Panels, finish, panels
from hjepa_dist_metrics.figures.inputs import host
from hjepa_dist_metrics.figures.style import COLOURS, TICK_SIZE, describe, plot_area
from hjepa_dist_metrics.figures.training.curves import (
    draw_curves,
    draw_limits,
    label_steps,
    use_log_scale,
)
from hjepa_dist_metrics.figures.training.landscape import visualize_loss_landscape as visualize_loss_landscape
from hjepa_dist_metrics.figures.training.logs import load_training_logs as load_training_logs
from hjepa_dist_metrics.figures.training.series import Runs, as_runs, is_smoothable, pick

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CURVES = ("loss/total", "train/loss", "train_loss", "loss", "val/loss", "val_loss", "learning_rate/base_lr")
_COLLAPSE = {
    "mean_std_per_dim": "spread per dimension",
    "effective_rank": "effective rank (dimensions)",
    "mean_similarity": "mean cosine of two samples",
    "rankme": "RankMe (dimensions)",
    "min_std_per_dim": "smallest spread",
    "max_similarity": "largest cosine",
}
_MOMENTUM = ("train/ema_momentum", "ema/momentum", "ema_momentum", "momentum")
_MOST_CURVES = 6


def plot_training_curves(
    logs: Mapping[str, Any],
    tags: Sequence[str] | None = None,
    *,
    smoothing: float = 0.0,
    axes: Panels | None = None,
    figsize: FigureSize | None = None,
    save_path: str | Path | None = None,
    dpi: int = PRINT_DPI,
) -> Figure:
    """Draw a panel for each tag, runs overlaid; a training and a validation loss share one.

    By default the tags are the losses and the learning rate, or the first six where none of those is there.
    """
    runs = as_runs(logs)
    chosen = list(tags) if tags is not None else _default_tags(runs)
    runs = pick(runs, chosen, "such tag")
    groups = _group_losses(chosen)
    figure, drawn = panels(len(groups), 2, figsize, axes, height=3.0)
    for ax, (title, members) in zip(drawn, groups.items(), strict=True):
        draw_curves(ax, runs, members, smoothing=smoothing, by_run=len(members) == 1)
        use_log_scale(ax, runs, members)
        label_steps(ax, title, title)
    return finish(figure, _smoothed("Training curves", smoothing, runs), save_path, dpi)


def plot_hierarchical_losses(
    logs: Mapping[str, Any],
    *,
    smoothing: float = 0.0,
    axes: Panels | None = None,
    figsize: FigureSize | None = None,
    save_path: str | Path | None = None,
    dpi: int = PRINT_DPI,
) -> Figure:
    """Draw each level's loss (`loss/h0`, ... or `loss_h0`, ...), and their shares of the sum at each step."""
    runs = as_runs(logs)
    levels = _level_tags(runs)
    if not levels:
        pick(runs, ["loss/h0"], "loss by level")
    figure, (curves, shares) = panels(2, 2, figsize, axes, height=3.6)
    names = [f"level {i}" for i in range(len(levels))]
    draw_curves(curves, runs, levels, smoothing=smoothing, names=names)
    use_log_scale(curves, runs, levels)
    label_steps(curves, "loss by level", "loss")
    run = next(name for name, have in runs.items() if all(tag in have for tag in levels))
    _draw_shares(shares, runs, run, levels, names)
    return finish(
        figure,
        _smoothed("Losses of the hierarchy", smoothing, pick(runs, levels, "loss by level")),
        save_path,
        dpi,
    )


def visualize_gradient_flow(
    gradients: nn.Module | Mapping[str, Tensor],
    *,
    axes: Panels | None = None,
    figsize: FigureSize | None = None,
    save_path: str | Path | None = None,
    dpi: int = PRINT_DPI,
) -> Figure:
    """Draw mean and largest magnitude of each parameter's gradient, by depth, and all elements' distribution.

    `gradients` is a model after `backward`, or gradients by name. Parameters of zero gradient are marked on
    the axis; NaN and infinity raise ConfigError with the parameter's name, as does a model without gradients.
    """
    found = _gradients(gradients)
    magnitudes = {name: np.abs(host(g)).ravel() for name, g in found.items()}
    for name, values in magnitudes.items():
        if not np.isfinite(values).all():
            raise ConfigError(f"the gradient of {name!r} has values that are not finite")
    figure, (flow, spread) = panels(2, 1, figsize, axes, height=3.8)
    means, tops = (
        [float(v.mean()) for v in magnitudes.values()],
        [float(v.max()) for v in magnitudes.values()],
    )
    floor = min([m for m in means if m > 0], default=1e-12) / 10
    places = np.arange(len(means))
    flow.bar(places, np.maximum(tops, floor), color=COLOURS[5], label="largest")
    flow.bar(places, np.maximum(means, floor), color=COLOURS[0], label="mean")
    dead = [i for i, top in enumerate(tops) if top == 0]
    if dead:
        flow.scatter(dead, [floor] * len(dead), marker="x", color=COLOURS[1], label="zero", zorder=3)
    flow.set_yscale("log")
    _name_layers(flow, list(magnitudes))
    plot_area(flow)
    flow.legend(fontsize=TICK_SIZE, frameon=False, ncols=3)
    describe(flow, "gradient by parameter, input to output", "", "magnitude")
    _draw_magnitudes(spread, np.concatenate(list(magnitudes.values())))
    return finish(figure, f"Gradient flow through {len(means)} parameters", save_path, dpi)


def plot_collapse_metrics(
    logs: Mapping[str, Any],
    *,
    name: str | None = None,
    smoothing: float = 0.0,
    axes: Panels | None = None,
    figsize: FigureSize | None = None,
    save_path: str | Path | None = None,
    dpi: int = PRINT_DPI,
) -> Figure:
    """Draw the collapse metrics that the logs have: spread, effective rank, similarity and more.

    Tags are `collapse/<metric>`, or `collapse/{name}_<metric>` of a named stream, or the bare metric. Where
    the logs have the numbers of features and of rows, healthy range and collapse are drawn in.
    """
    everything = runs = as_runs(logs)
    prefix = "collapse/" if name is None else f"collapse/{name}_"
    wanted = [f"{prefix}{metric}" for metric in _COLLAPSE]
    bare = list(_COLLAPSE) if name is None else []
    runs = pick(runs, wanted + bare, "collapse metric")
    shown = [tag for tag in wanted + bare if any(tag in have for have in runs.values())]
    figure, drawn = panels(len(shown), 2, figsize, axes, height=2.7)
    for ax, tag in zip(drawn, shown, strict=True):
        draw_curves(ax, runs, [tag], smoothing=smoothing, by_run=True)
        quantity = _COLLAPSE[tag.removeprefix(prefix)]
        if "similarity" in tag:
            ax.set_ylim(-1.05 if ax.get_ylim()[0] < -0.05 else -0.05, 1.05)
        else:
            ax.set_ylim(bottom=0)
        limits = _agreed_limits(tag, everything)
        if limits is not None:
            draw_limits(ax, limits)
        label_steps(ax, tag, quantity)
    return finish(figure, _smoothed("Collapse metrics", smoothing, runs), save_path, dpi)


def plot_ema_momentum(
    logs: Mapping[str, Any] | Sequence[float],
    *,
    ax: Axes | None = None,
    figsize: FigureSize | None = None,
    save_path: str | Path | None = None,
    dpi: int = PRINT_DPI,
) -> Figure:
    """Draw the target encoder's momentum over steps; the right axis is its memory, 1 / (1 - momentum).

    `logs` may also be the momenta themselves, one a step. ConfigError for a momentum outside [0, 1].
    """
    runs = as_runs(logs if isinstance(logs, Mapping) else {_MOMENTUM[0]: list(logs)})
    runs = pick(runs, _MOMENTUM, "momentum")
    for have in runs.values():
        for tag, series in have.items():
            if series.values.min() < 0 or series.values.max() > 1:
                raise ConfigError(f"{tag} leaves [0, 1]: {series.values.min():g} to {series.values.max():g}")
    tags = [tag for tag in _MOMENTUM if any(tag in have for have in runs.values())]
    figure, drawn = panels(1, 1, figsize, None if ax is None else [ax], height=3.8)
    draw_curves(drawn[0], runs, tags[:1], by_run=True)
    label_steps(drawn[0], "", "momentum")
    memory = drawn[0].secondary_yaxis("right")
    memory.set_ylabel("memory 1 / (1 - momentum) (steps)", fontsize=10)
    low, high = drawn[0].get_ylim()
    drawn[0].set_ylim(low, min(high, 1.0 + 0.02 * (1.0 - low)))
    ticks = [t for t in drawn[0].get_yticks() if low <= t <= 1.0]
    memory.set_yticks(ticks, ["∞" if t >= 1 else f"{1 / (1 - t):,.0f}" for t in ticks], fontsize=TICK_SIZE)
    return finish(figure, "Momentum of the target encoder", save_path, dpi)


def _agreed_limits(tag: str, runs: Runs) -> Limits | None:
    """Return the limits of a tag where all runs that have it have the same ones."""
    latest = [{name: float(series.values[-1]) for name, series in have.items()} for have in runs.values()]
    found = {limits_of(tag, numbers) for numbers in latest if tag in numbers}
    return found.pop() if len(found) == 1 else None


def _default_tags(runs: Runs) -> list[str]:
    there = dict.fromkeys(tag for have in runs.values() for tag in have)
    known = [tag for tag in _CURVES if tag in there]
    if "loss/total" in known and "train/loss" in known:  # one number under two names
        known.remove("train/loss")
    return known or list(there)[:_MOST_CURVES]


def _group_losses(tags: Sequence[str]) -> dict[str, list[str]]:
    """Return panels by title: losses of training and validation together, every other tag alone."""
    losses = [tag for tag in tags if tag.split("/")[-1] in ("loss", "train_loss", "val_loss", "total")]
    groups = {"loss": losses} if len(losses) > 1 else {}
    return groups | {tag: [tag] for tag in tags if len(losses) < 2 or tag not in losses}


def _level_tags(runs: Runs) -> list[str]:
    there = {tag for have in runs.values() for tag in have}
    for pattern in ("loss/h{}", "loss_h{}"):
        tags: list[str] = []
        while pattern.format(len(tags)) in there:
            tags.append(pattern.format(len(tags)))
        if tags:
            return tags
    return []


def _draw_shares(ax: Axes, runs: Runs, run: str, levels: Sequence[str], names: Sequence[str]) -> None:
    """Stack each level's share of the levels' sum, at the steps that all levels have."""
    series = [runs[run][tag] for tag in levels]
    steps = series[0].steps
    for one in series[1:]:
        steps = np.intersect1d(steps, one.steps)
    values = np.stack([one.values[np.isin(one.steps, steps)] for one in series])
    shares = 100 * values / np.maximum(values.sum(axis=0), 1e-300)
    ax.stackplot(steps, shares, labels=names, colors=COLOURS[: len(levels)], alpha=0.85)
    plot_area(ax)
    ax.set_ylim(0, 100)
    ax.legend(fontsize=TICK_SIZE, loc="lower right")
    of = f" of {run}" if len(runs) > 1 else ""
    label_steps(ax, f"share of each level{of}, unweighted", "share of the sum (%)")


def _gradients(source: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(source, nn.Module):
        found = {name: p.grad for name, p in source.named_parameters() if p.grad is not None}
    else:
        found = dict(source)
    if not found:
        raise ConfigError("no parameter has a gradient: call it after loss.backward(), before zero_grad()")
    return found


def _name_layers(ax: Axes, names: Sequence[str]) -> None:
    """Write up to 40 names upright under the bars, numbers where there are more."""
    if len(names) <= 40:
        size = TICK_SIZE if len(names) <= 24 else 7.0
        ax.set_xticks(range(len(names)), [name[-28:] for name in names], rotation=90, fontsize=size)
    else:
        ax.set_xlabel("parameter number", fontsize=10)


def _draw_magnitudes(ax: Axes, values: Any) -> None:
    positive = values[values > 0]
    exponents = np.log10(positive) if positive.size else np.zeros(0)
    counts, edges = np.histogram(exponents, bins=60, range=(-12, 2))
    ax.stairs(counts, 10.0**edges, fill=True, color=COLOURS[2])
    ax.set_xscale("log")
    if positive.size:
        ax.set_xlim(10.0 ** max(-12, exponents.min() - 0.5), 10.0 ** min(2, exponents.max() + 0.5))
    plot_area(ax)
    zero = 100 * (1 - positive.size / values.size)
    describe(ax, f"all {values.size} elements ({zero:.1f} % are zero)", "magnitude", "elements")


def _smoothed(title: str, smoothing: float, runs: Runs) -> str:
    any_smoothed = any(is_smoothable(tag, series) for have in runs.values() for tag, series in have.items())
    return f"{title} (smoothing {smoothing:g})" if smoothing and any_smoothed else title
