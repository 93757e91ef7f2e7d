"""Attention over a network: fused heads, rolled-out layers, distances; and which token is which patch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.figures.inputs import Grid

HeadFusion = Literal["mean", "max", "min"]
Query = str | int | tuple[int, int]

_MAX_PREFIX = 16


@dataclass(frozen=True)
class TokenLayout:
    """Say which tokens are patches: first `prefix` class and register tokens, then the grid by rows."""

    prefix: int
    grid: Grid

    @property
    def tokens(self) -> int:
        """Return the number of tokens."""
        return self.prefix + self.grid[0] * self.grid[1]

    def patch_token(self, patch: int | tuple[int, int]) -> int:
        """Return the token of a patch, by number or (row, column); ConfigError outside the grid."""
        rows, columns = self.grid
        number = patch if isinstance(patch, int) else patch[0] * columns + patch[1]
        inside = isinstance(patch, int) or (0 <= patch[0] < rows and 0 <= patch[1] < columns)
        if not inside or not 0 <= number < rows * columns:
            raise ConfigError(f"there is no patch {patch} in a grid of {rows}x{columns}")
        return self.prefix + number


def fuse_heads(weights: Tensor, head_fusion: HeadFusion = "mean") -> Tensor:
    """Return one map [B, N, N] of the heads' [B, heads, N, N]: their mean, largest or smallest weight."""
    if head_fusion == "mean":
        return weights.mean(dim=1)
    if head_fusion == "max":
        return weights.amax(dim=1)
    if head_fusion == "min":
        return weights.amin(dim=1)
    raise ConfigError(f"head_fusion is {head_fusion!r}; allowed: 'mean', 'max', 'min'")


def attention_rollout(
    maps: Mapping[str, Tensor] | Iterable[Tensor],
    head_fusion: HeadFusion = "mean",
    discard_ratio: float = 0.0,
) -> Tensor:
    """Return the share [B, N, N] of every input token in every output token, over all layers.

    A_l = rows of (W_l + I) / 2 scaled to sum 1, where W_l are the layer's fused weights without their
    smallest `discard_ratio`; the result is A_L ... A_1. `maps` holds [B, heads, N, N], first layer first.
    Source: Abnar and Zuidema 2020 (2005.00928).
    """
    if not 0.0 <= discard_ratio < 1.0:
        raise ConfigError(f"discard_ratio is {discard_ratio!r}; allowed: from 0 up to, not including, 1")
    rollout: Tensor | None = None
    for weights in maps.values() if isinstance(maps, Mapping) else maps:
        layer = _with_residual(_discard(fuse_heads(weights, head_fusion).float(), discard_ratio))
        if rollout is not None and layer.shape != rollout.shape:
            raise ConfigError(
                f"a rollout needs maps of one shape, got {list(rollout.shape)} and then {list(layer.shape)}"
            )
        rollout = layer if rollout is None else layer @ rollout
    if rollout is None:
        raise ConfigError("a rollout needs at least one attention map, got none")
    return rollout


def attention_distance(weights: Tensor, layout: TokenLayout) -> Tensor:
    """Return how far a patch looks, in patches: the mean distance under the weights, [B, heads].

    Only patches count, as queries and as keys, with the weights among them scaled to sum 1.
    Source: Dosovitskiy et al. (2010.11929), appendix D.7.
    """
    among = weights[..., layout.prefix :, layout.prefix :].double()
    among = among / among.sum(dim=-1, keepdim=True).clamp(min=1e-12)
    rows, columns = layout.grid
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).double().reshape(-1, 2)
    distance = torch.cdist(places, places).to(among.device)
    return (among * distance).sum(dim=-1).mean(dim=-1)


def token_layout(
    model: nn.Module | None, image: Tensor, tokens: int, grid: Grid | None = None
) -> TokenLayout:
    """Find the patches among `tokens` tokens of an image [..., H, W].

    The grid is the given one, else the image over the model's patch size, else the only grid in the image's
    proportions that leaves few tokens before it. ConfigError where that does not fit.
    """
    height, width = int(image.shape[-2]), int(image.shape[-1])
    patch = None if grid is not None or model is None else _patch_size(model)
    if patch is not None:
        grid = (height // patch[0], width // patch[1])
    if grid is None:
        grid = _guess_grid(tokens, height, width)
    prefix = tokens - grid[0] * grid[1]
    if not 0 <= prefix <= _MAX_PREFIX:
        raise ConfigError(
            f"{tokens} tokens do not fit a grid of {grid[0]}x{grid[1]} patches of an image of "
            f"{height}x{width} pixels: pass grid=(rows, columns)"
        )
    return TokenLayout(prefix, grid)


def query_weights(attention: Tensor, layout: TokenLayout, query: Query = "auto") -> Tensor:
    """Return what one query gives to each patch, [..., rows, columns], of weights [..., N, N].

    "cls" is the first token, "mean" the mean over the patches as queries, a number or (row, column) a patch;
    "auto" is "cls" where there are tokens before the patches, else "mean".
    """
    if query == "auto":
        query = "cls" if layout.prefix else "mean"
    if query == "cls" and layout.prefix == 0:
        raise ConfigError("this model has no class token: use query='mean' or a patch")
    if query == "mean":
        row = attention[..., layout.prefix :, :].mean(dim=-2)
    elif query == "cls":
        row = attention[..., 0, :]
    elif isinstance(query, str):
        raise ConfigError(
            f"query is {query!r}; allowed: 'auto', 'cls', 'mean', a patch's number or (row, column)"
        )
    else:
        row = attention[..., layout.patch_token(query), :]
    return row[..., layout.prefix :].reshape(*row.shape[:-1], *layout.grid)


def _discard(fused: Tensor, ratio: float) -> Tensor:
    """Return the maps with their smallest entries, a share `ratio` of each image's, set to 0."""
    count = int(fused[0].numel() * ratio)
    if count == 0:
        return fused
    flat = fused.flatten(1)
    lowest = flat.argsort(dim=1, stable=True)[:, :count]
    return flat.scatter(1, lowest, 0.0).view_as(fused)


def _with_residual(fused: Tensor) -> Tensor:
    mixed = fused + torch.eye(fused.shape[-1], dtype=fused.dtype, device=fused.device)
    return mixed / mixed.sum(dim=-1, keepdim=True)


def _patch_size(model: nn.Module) -> tuple[int, int] | None:
    """Return the stride of the patch embedding: the first convolution without overlap, or a `patch_size`."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == module.stride and module.stride[0] > 1:
            return (module.stride[0], module.stride[1])
    for module in model.modules():
        size = getattr(module, "patch_size", None)
        if isinstance(size, int) and size > 0:
            return (size, size)
        if isinstance(size, (tuple, list)) and len(size) == 2:
            return (int(size[0]), int(size[1]))
    return None


def _guess_grid(tokens: int, height: int, width: int) -> Grid:
    for prefix in range(min(_MAX_PREFIX, tokens - 1) + 1):
        patches = tokens - prefix
        rows = round((patches * height / width) ** 0.5)
        if rows and patches % rows == 0 and rows * width == (patches // rows) * height:
            return (rows, patches // rows)
    raise ConfigError(
        f"cannot tell which of {tokens} tokens are the patches of an image of {height}x{width} pixels: "
        "pass grid=(rows, columns)"
    )
