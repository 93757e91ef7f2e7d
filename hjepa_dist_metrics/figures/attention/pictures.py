"""Pictures of attention: heads, layers, rollout, and what one patch looks at.

`model` is a module, or the maps that `extract_attention_maps` returned; `image` is [C, H, W] or [1, C, H, W].
`query` says whose attention is shown: "cls" for the first token, "mean" over all patches, a patch's number or
(row, column); "auto" takes "cls" where there are tokens before the patches. `grid` is (rows, columns) of
patches where it cannot be read off the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.figures.attention.capture import attention_model, extract_attention_maps
from hjepa_dist_metrics.figures.attention.overlay import outline, show_patches, show_picture
from hjepa_dist_metrics.figures.attention.rollout import (
    HeadFusion,
    Query,
    TokenLayout,
    attention_distance,
    attention_rollout,
    fuse_heads,
    query_weights,
    token_layout,
)
from hjepa_dist_metrics.figures.canvas import (
    PRINT_DPI,
    FigureSize,
    Panels,
    colour_bar,
    finish,
    new_figure,
    panels,
)
from hjepa_dist_metrics.figures.inputs import Floats, Grid, host, picture
from hjepa_dist_metrics.figures.style import COLOURS, MASKED, SEQUENTIAL, describe, plot_area

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Source = nn.Module | Mapping[str, Tensor]

_SHARE = "attention weight"
_MOST_PANELS = 4


def visualize_attention_maps(
    model: Source,
    image: Tensor,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    *,
    query: Query = "auto",
    grid: Grid | None = None,
    axes: Panels | None = None,
    cmap: str = SEQUENTIAL,
    figsize: FigureSize | None = None,
    save_path: str | Path | None = None,
    dpi: int = PRINT_DPI,
) -> Figure:
    """Draw layers as rows and heads as columns, over the image, with one colour scale.

    By default up to four layers, evenly spread, and the mean over heads followed by the first three heads;
    `heads` picks heads instead.
    """
    maps, layout = _maps(model, image, layers, grid)
    found, count = len(maps), next(iter(maps.values())).shape[1]
    if layers is None:
        maps = _spread(maps)
    columns = _head_columns(count, heads)
    values = [
        [host(query_weights(fuse_heads(w) if h is None else w[:, h], layout, query))[0] for h in columns]
        for w in maps.values()
    ]
    figure, drawn = panels(len(maps) * len(columns), len(columns), figsize, axes, aspect=_aspect(image))
    titles = [
        f"{_short(name)}\n{'mean of heads' if head is None else f'head {head}'}"
        for name in maps
        for head in columns
    ]
    _draw_weights(figure, drawn, titles, [v for row in values for v in row], image, cmap)
    title = "Attention by layer and head"
    left_out = [
        f"{shown} of {of} {what}"
        for what, shown, of in (
            ("layers", len(maps), found),
            ("heads", sum(head is not None for head in columns), count),
        )
        if shown < of
    ]
    return finish(figure, f"{title}: {', '.join(left_out)}" if left_out else title, save_path, dpi)


def visualize_multihead_attention(
    model: Source,
    image: Tensor,
    layer: int = -1,
    *,
    query: Query = "auto",
    grid: Grid | None = None,
    columns: int = 4,
    axes: Panels | None = None,
    cmap: str = SEQUENTIAL,
    figsize: FigureSize | None = None,
    save_path: str | Path | None = None,
    dpi: int = PRINT_DPI,
) -> Figure:
    """Draw every head of one layer over the image, with one colour scale, beside the image itself.

    `axes`, where given, are one a head; the image is left out.
    """
    maps, layout = _maps(model, image, [layer], grid)
    name, weights = next(iter(maps.items()))
    values = host(query_weights(weights, layout, query))[0]
    beside = axes is None
    figure, drawn = panels(len(values) + beside, columns + beside, figsize, axes, aspect=_aspect(image))
    if beside:
        show_picture(drawn[0], picture(image))
        describe(drawn[0], "image")
        drawn = drawn[1:]
    _draw_weights(figure, drawn, [f"head {i}" for i in range(len(values))], list(values), image, cmap)
    return finish(figure, f"Attention heads of {name}", save_path, dpi)


def visualize_attention_rollout(
    model: Source,
    image: Tensor,
    *,
    head_fusion: HeadFusion = "mean",
    discard_ratio: float = 0.0,
    query: Query = "auto",
    grid: Grid | None = None,
    axes: Panels | None = None,
    cmap: str = SEQUENTIAL,
    figsize: FigureSize | None = None,
    save_path: str | Path | None = None,
    dpi: int = PRINT_DPI,
) -> Figure:
    """Draw the image and each patch's share in the output through all layers (see `attention_rollout`)."""
    maps, layout = _maps(model, image, None, grid)
    rollout = attention_rollout(maps, head_fusion, discard_ratio)
    values = host(query_weights(rollout, layout, query))[0]
    figure, drawn = panels(2, 2, figsize, axes, aspect=_aspect(image))
    show_picture(drawn[0], picture(image))
    describe(drawn[0], "image")
    _draw_weights(
        figure, drawn[1:], [f"rollout of {len(maps)} layers"], [values], image, cmap, "share of the output"
    )
    return finish(figure, "Attention rollout", save_path, dpi)


def visualize_hierarchical_attention(
    model: Source,
    image: Tensor,
    *,
    query: Query = "auto",
    grid: Grid | None = None,
    cmap: str = SEQUENTIAL,
    figsize: FigureSize | None = None,
    save_path: str | Path | None = None,
    dpi: int = PRINT_DPI,
) -> Figure:
    """Draw an early, a middle and a late layer, and how far each head of every layer looks, in patches."""
    maps, layout = _maps(model, image, None, grid)
    names = list(maps)
    chosen = {"early": names[0], "middle": names[(len(names) - 1) // 2], "late": names[-1]}
    figure = new_figure(figsize, (9.0, 6.4))
    axes = figure.subplot_mosaic([["early", "middle", "late"], ["far"] * 3], height_ratios=[1.25, 1.0])
    values = [host(query_weights(fuse_heads(maps[name]), layout, query))[0] for name in chosen.values()]
    titles = [f"{depth}: {_short(name)}" for depth, name in chosen.items()]
    _draw_weights(figure, [axes[depth] for depth in chosen], titles, values, image, cmap)
    _draw_distances(axes["far"], [host(attention_distance(w, layout))[0] for w in maps.values()])
    return finish(figure, "Attention by depth", save_path, dpi)


def visualize_patch_to_patch_attention(
    model: Source,
    image: Tensor,
    patch: int | tuple[int, int] | None = None,
    layer: int = -1,
    head: int | None = None,
    *,
    grid: Grid | None = None,
    axes: Panels | None = None,
    cmap: str = SEQUENTIAL,
    figsize: FigureSize | None = None,
    save_path: str | Path | None = None,
    dpi: int = PRINT_DPI,
) -> Figure:
    """Mark one patch (by default the middle one) in the image, and draw its attention to all others.

    `head` picks a head; by default the heads' mean is drawn.
    """
    maps, layout = _maps(model, image, [layer], grid)
    name, weights = next(iter(maps.items()))
    rows, columns = layout.grid
    patch = (rows // 2, columns // 2) if patch is None else patch
    number = layout.patch_token(patch) - layout.prefix
    attention = fuse_heads(weights) if head is None else weights[:, _head(weights, head)]
    values = host(query_weights(attention, layout, number))[0]
    shown = picture(image)
    cell, size = divmod(number, columns), (shown.shape[0] / rows, shown.shape[1] / columns)
    figure, drawn = panels(2, 2, figsize, axes, aspect=_aspect(image))
    show_picture(drawn[0], shown)
    describe(drawn[0], f"patch at row {cell[0]}, column {cell[1]}")
    of = "mean of heads" if head is None else f"head {head}"
    _draw_weights(figure, drawn[1:], [f"{_short(name)}, {of}"], [values], image, cmap)
    for ax in drawn:
        outline(ax, (cell[0], cell[1]), size, MASKED)
    return finish(figure, "What one patch attends to", save_path, dpi)


def _maps(
    source: Source, image: Tensor, layers: Sequence[int] | None, grid: Grid | None
) -> tuple[dict[str, Tensor], TokenLayout]:
    """Return the first image's maps of square layers, and where the patches are among their tokens."""
    batch = image if image.ndim == 4 else image[None]
    if batch.ndim != 4 or len(batch) != 1:
        raise ConfigError(f"expected one image [C, H, W] or [1, C, H, W], got shape {list(image.shape)}")
    if isinstance(source, nn.Module):
        maps, model = extract_attention_maps(source, batch, layers), attention_model(source)
    else:
        maps, model = _pick(source, layers), None
    sizes = {tuple(weights.shape[-2:]) for weights in maps.values()}
    if len(sizes) != 1 or len(set(next(iter(sizes)))) != 1:
        raise ConfigError(f"expected self-attention maps of one size, got (queries, keys) {sorted(sizes)}")
    tokens = next(iter(maps.values())).shape[-1]
    return maps, token_layout(model, batch, tokens, grid)


def _pick(maps: Mapping[str, Tensor], layers: Sequence[int] | None) -> dict[str, Tensor]:
    names = list(maps)
    if not names:
        raise ConfigError("got no attention maps")
    if layers is not None and any(not -len(names) <= layer < len(names) for layer in layers):
        raise ConfigError(f"got {len(names)} attention maps and layers={list(layers)}")
    return {name: maps[name] for name in (names if layers is None else [names[layer] for layer in layers])}


def _spread(maps: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return up to four of the maps, evenly spread from the first to the last."""
    places = np.unique(np.linspace(0, len(maps) - 1, _MOST_PANELS).round().astype(int))
    return {name: w for i, (name, w) in enumerate(maps.items()) if i in places}


def _head_columns(count: int, heads: Sequence[int] | None) -> list[int | None]:
    if heads is None:
        return [None, *range(min(count, _MOST_PANELS - 1))]
    for head in heads:
        if not -count <= head < count:
            raise ConfigError(f"the layer has {count} heads, got head {head}")
    return list(heads)


def _head(weights: Tensor, head: int) -> int:
    _head_columns(weights.shape[1], [head])
    return head


def _draw_weights(
    figure: Figure,
    axes: Sequence[Axes],
    titles: Sequence[str],
    values: Sequence[Floats],
    image: Tensor,
    cmap: str,
    label: str = _SHARE,
) -> None:
    """Draw heat maps on one scale from 0 to the largest weight, with one colour bar.

    Colours follow the weight's square root: one patch that takes nearly all would hide the others.
    """
    from matplotlib.colors import PowerNorm

    shown, top = picture(image), max(float(np.max(v)) for v in values)
    norm = PowerNorm(0.5, vmin=0.0, vmax=top or 1.0)
    drawn: Any = None
    for ax, title, value in zip(axes, titles, values, strict=True):
        drawn = show_patches(ax, value, shown, norm=norm, cmap=cmap)
        describe(ax, title)
    colour_bar(figure, drawn, list(axes), label)


def _draw_distances(ax: Axes, distances: Sequence[Floats]) -> None:
    """Draw a dot for each head and a line for the mean, layer by layer."""
    for layer, heads in enumerate(distances):
        ax.scatter(
            np.full(len(heads), layer), heads, s=18, color=COLOURS[5], label="head" if layer == 0 else None
        )
    means = [float(heads.mean()) for heads in distances]
    ax.plot(range(len(means)), means, color=COLOURS[0], marker="o", label="mean of heads")
    ax.set_xticks(range(len(means)))
    plot_area(ax)
    ax.set_ylim(bottom=0)
    describe(ax, "how far the heads look", "layer", "mean distance (patches)")
    ax.legend(fontsize=9, frameon=False)


def _aspect(image: Tensor) -> float:
    return float(image.shape[-2] / image.shape[-1])


def _short(name: str) -> str:
    """Return a module's name without the parts that every layer shares, at most 24 characters."""
    return name if len(name) <= 24 else "…" + name[-23:]
