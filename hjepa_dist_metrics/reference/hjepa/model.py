"""H-JEPA: context encoder, EMA target encoder, predictor, hierarchy."""

from __future__ import annotations

import copy
from typing import TypedDict

import torch
from torch import nn

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.reference.hjepa.config import ModelConfig
from hjepa_dist_metrics.reference.hjepa.ema import ema_momentum, ema_update
from hjepa_dist_metrics.reference.hjepa.encoder import Tokens, VisionEncoder
from hjepa_dist_metrics.reference.hjepa.hierarchy import level_grids, pool_any, pool_tokens
from hjepa_dist_metrics.reference.hjepa.predictor import Predictor


class HJEPAOutput(TypedDict):
    """Name what `HJEPA.forward` returns; lists run over the levels, fine to coarse."""

    predictions: list[torch.Tensor]
    """[B, N_l, D]."""
    targets: list[torch.Tensor]
    """[B, N_l, D], pooled target features, not normalised."""
    masks_valid: list[torch.Tensor]
    """Bool [B, N_l]: tokens that count in loss and metrics: masked (in part, when coarse), not padding."""
    tokens_valid: list[torch.Tensor]
    """Bool [B, N_l]: tokens that are not padding."""
    context_features: torch.Tensor
    """[B, K, D], the visible patches' features, 0 at padding."""
    context_valid: torch.Tensor
    """Bool [B, K]."""
    target_features: torch.Tensor
    """[B, N, D]."""


def patch_grid(config: ModelConfig, image_size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """Return patch size and (rows, columns) of patches; ConfigError unless whole patches fill the image."""
    patch = config.patch_size if config.patch_size is not None else max(min(image_size) // 4, 1)
    height, width = image_size
    if height % patch or width % patch:
        raise ConfigError(
            f"model.patch_size is {patch}; allowed: a divisor of both sides of the images, {height}x{width}"
        )
    return patch, (height // patch, width // patch)


class HJEPA(nn.Module):
    """Predict the target encoder's features of masked patches from the visible ones, at several resolutions.

    `image_size` is (height, width) in pixels; `total_steps` is the length of the momentum schedule.
    Raises ConfigError where image, patch size and number of levels don't fit together.
    """

    def __init__(
        self, config: ModelConfig, image_size: tuple[int, int], in_channels: int = 1, total_steps: int = 1
    ) -> None:
        super().__init__()
        self.config, self.total_steps = config, total_steps
        patch, self.grid = patch_grid(config, image_size)
        self.level_grids = level_grids(self.grid, config.num_hierarchies)
        heads, ratio = config.num_heads, config.mlp_ratio
        self.context_encoder = VisionEncoder(
            self.grid, patch, in_channels, config.embed_dim, config.depth, heads, ratio
        )
        self.target_encoder = copy.deepcopy(self.context_encoder).requires_grad_(False)
        width, depth = config.predictor_dim, config.predictor_depth
        self.predictor = Predictor(self.grid, config.embed_dim, width, depth, heads, ratio)
        self.heads = nn.ModuleList(nn.Linear(width, config.embed_dim) for _ in self.level_grids)

    @property
    def num_hierarchies(self) -> int:
        """Return the number of levels."""
        return len(self.level_grids)

    def get_num_patches(self) -> int:
        """Return N, the number of patches of one image."""
        return self.grid[0] * self.grid[1]

    def forward(
        self,
        images: torch.Tensor,
        mask: torch.Tensor,
        return_all_levels: bool = True,
        patch_valid: torch.Tensor | None = None,
        max_visible: int | None = None,
    ) -> HJEPAOutput:
        """Return predictions and targets of every level, or of the finest one only.

        images [B, C, H, W]; mask bool [B, N], True = masked; patch_valid bool [B, N], False = padding (None:
        all patches are real); max_visible, an upper bound of visible patches a sample, see `visible_first`.
        """
        valid = torch.ones_like(mask) if patch_valid is None else patch_valid
        # A sample without a visible patch has nothing to predict from: it counts nowhere.
        visible = valid & ~mask
        masked = mask & valid & visible.any(dim=1, keepdim=True)
        context: Tokens = self.context_encoder(images, visible, max_visible)
        hidden = self.predictor(context, None if patch_valid is None else _attendable(valid))
        target = self._targets(images, patch_valid)
        levels = range(self.num_hierarchies if return_all_levels else 1)
        return HJEPAOutput(
            predictions=[self.heads[i](pool_tokens(hidden, valid, self.grid, i)) for i in levels],
            targets=[pool_tokens(target, valid, self.grid, i) for i in levels],
            masks_valid=[pool_any(masked, self.grid, i) for i in levels],
            tokens_valid=[pool_any(valid, self.grid, i) for i in levels],
            context_features=context.features,
            context_valid=context.valid,
            target_features=target,
        )

    def _targets(self, images: torch.Tensor, patch_valid: torch.Tensor | None) -> torch.Tensor:
        """Return the whole image's features [B, N, D], without gradient unless the objective wants it."""
        if not self.config.objective.stop_gradient:
            return _encode_all(self.context_encoder, images, patch_valid)
        with torch.no_grad():
            return _encode_all(self.target_encoder, images, patch_valid)

    def update_target_encoder(self, step: int) -> float:
        """Move the target encoder towards the context encoder, unless it is frozen; return the momentum."""
        ema = self.config.ema
        momentum = ema_momentum(step, self.total_steps, ema.momentum_start, ema.momentum_end)
        if not ema.frozen:
            ema_update(self.context_encoder, self.target_encoder, momentum)
        return momentum

    @torch.no_grad()
    def extract_features(
        self, images: torch.Tensor, level: int = 0, use_target_encoder: bool = True
    ) -> torch.Tensor:
        """Return frozen features of whole images at one level: [B, N_l, D]."""
        encoder = self.target_encoder if use_target_encoder else self.context_encoder
        features = _encode_all(encoder, images, None)
        valid = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        return pool_tokens(features, valid, self.grid, level)


def _attendable(valid: torch.Tensor) -> torch.Tensor:
    """Return the keys to attend to: the valid ones, or all where there are none (or softmax gives NaN)."""
    return valid | ~valid.any(dim=1, keepdim=True)


def _encode_all(encoder: nn.Module, images: torch.Tensor, patch_valid: torch.Tensor | None) -> torch.Tensor:
    """Return features of every patch in its place, [B, N, D]; padding patches are not seen and read 0."""
    if patch_valid is None:
        whole: torch.Tensor = encoder(images).features
        return whole
    tokens: Tokens = encoder(images, patch_valid, patch_valid.shape[1])
    back = tokens.positions.argsort(dim=1)
    return tokens.features.gather(1, back.unsqueeze(-1).expand_as(tokens.features))
