"""Draw every kind of figure from synthetic data, without a trained model.

python launch/visualization_example.py [DIRECTORY]: the files go to results/visualizations by default.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import hjepa_dist_metrics.figures as fig
from hjepa_dist_metrics.reference.hjepa.encoder import VisionEncoder
from hjepa_dist_metrics.reference.hjepa.masking import MultiBlockMaskGenerator

Figures = Iterator[tuple[str, Any]]

RNG = np.random.default_rng(0)


def scene(size: int = 112) -> torch.Tensor:
    """Return a picture [3, size, size]: a bright disc on a gradient."""
    y, x = np.mgrid[0:size, 0:size] / size
    disc = np.hypot(x - 0.6, y - 0.4) < 0.2
    return torch.from_numpy(np.stack([np.where(disc, 1.0, x), np.where(disc, 0.9, y), 1 - y])).float()


def example_masking_visualization() -> Figures:
    """Yield masks: single, multi-block, compared, counted."""
    generator = MultiBlockMaskGenerator((14, 14), min_visible=20)
    drawn = generator.generate_blocks(torch.arange(300), 0)
    strategies: dict[str, Any] = {
        "multi-block": drawn.mask,
        "random patches": RNG.random((300, 196)) < 0.5,
        "right half": np.tile(np.arange(14) >= 7, (300, 14, 1)).reshape(300, 196),
    }
    yield "masking_multi_block", fig.visualize_multi_block_masking(9, generator)
    yield "masking_strategy", fig.visualize_masking_strategy(drawn.mask[0], scene())
    yield "masking_image", fig.visualize_masked_image(scene(), drawn.mask[0])
    yield "masking_regions", fig.visualize_context_target_regions(scene(), drawn.mask[0], drawn.blocks[0])
    yield "masking_compared", fig.compare_masking_strategies(strategies)
    yield "masking_statistics", fig.plot_masking_statistics(drawn.mask, drawn.blocks)


def example_attention_visualization() -> Figures:
    """Yield the attention of an untrained vision transformer."""
    torch.manual_seed(0)
    encoder = VisionEncoder((14, 14), 8, 3, 64, 6, 4, 2.0)
    for name, parameter in encoder.named_parameters():
        if name.endswith("qkv.weight"):
            parameter.data.mul_(3.0)  # sharper than at initialisation, so that there is something to see
    maps = fig.extract_attention_maps(encoder, scene())
    yield "attention_maps", fig.visualize_attention_maps(maps, scene())
    yield "attention_heads", fig.visualize_multihead_attention(maps, scene())
    yield "attention_rollout", fig.visualize_attention_rollout(maps, scene(), discard_ratio=0.5)
    yield "attention_depth", fig.visualize_hierarchical_attention(maps, scene())
    yield "attention_patch", fig.visualize_patch_to_patch_attention(maps, scene(), (5, 8))


def example_feature_space_visualization() -> Figures:
    """Yield features of three classes, their neighbours, and predictions of them."""
    labels = np.arange(300) % 3
    features = RNG.standard_normal((300, 32)) + 3 * np.eye(32)[labels]
    pictures = np.zeros((300, 3, 8, 8))
    pictures[np.arange(300), labels] = RNG.random((300, 8, 8)) * 0.5 + 0.5
    targets = torch.from_numpy(RNG.standard_normal((8, 196, 32)))
    predictions = targets + torch.linspace(0, 2, 196)[:, None] * torch.randn(8, 196, 32)
    yield "features_pca", fig.visualize_feature_space(features, labels)
    yield "features_tsne", fig.visualize_feature_space(features, labels, "tsne")
    yield "features_neighbours", fig.visualize_nearest_neighbors(features, pictures)
    yield "predictions", fig.visualize_predictions(predictions, targets, [scene()] * 8)
    levels = [slice(None), slice(None, None, 4)]
    by_level = [predictions[:, level] for level in levels], [targets[:, level] for level in levels]
    yield "predictions_by_level", fig.visualize_hierarchical_predictions(*by_level, scene())
    noisy = (scene() + 0.1 * torch.randn(3, 112, 112)).clamp(0, 1)
    yield "reconstruction", fig.visualize_reconstruction(scene()[None], noisy[None])


def example_embedding_analysis() -> Figures:
    """Yield healthy and collapsed embeddings."""
    healthy = RNG.standard_normal((500, 64))
    collapsed = RNG.standard_normal((500, 3)) @ RNG.standard_normal((3, 64)) + 5.0
    yield "embeddings_healthy", fig.visualize_embedding_distribution(healthy)
    yield "embeddings_collapsed", fig.visualize_embedding_distribution(collapsed)


def example_training_visualization() -> Figures:
    """Yield curves of a synthetic run, and gradients and loss landscape of a small network."""
    steps = np.arange(0.0, 1000.0, 5.0)
    decay, noise = np.exp(-steps / 250), 0.03 * RNG.random((3, len(steps)))
    levels: dict[str, Any] = {f"loss/h{i}": (steps, decay / (i + 1) + 0.05 + noise[i]) for i in range(3)}
    logs = {
        **levels,
        "loss/total": (steps, sum(values for _, values in levels.values())),
        "val/loss": (steps[::10], 2 * decay[::10] + 0.3),
        "collapse/mean_std_per_dim": (steps, 0.12 - 0.05 * decay),
        "collapse/effective_rank": (steps, 50 - 40 * decay),
        "collapse/mean_similarity": (steps, 0.8 * decay),
    }
    probe = {
        "probe/encoder_linear_top1": (steps, 0.8 - 0.6 * decay - 0.3 * (steps > 700) * (steps / 700 - 1))
    }
    momentum = (1 - 0.004 * (np.cos(np.pi * steps / 1000) + 1) / 2).tolist()
    yield "training_curves", fig.plot_training_curves(logs)
    yield "training_levels", fig.plot_hierarchical_losses(logs)
    yield "training_collapse", fig.plot_collapse_metrics(logs)
    yield "training_probes", fig.plot_probes(logs | probe)
    yield "training_momentum", fig.plot_ema_momentum(momentum)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    inputs = torch.randn(128, 8)
    targets = inputs[:, :2].prod(dim=1, keepdim=True)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    yield "gradients", fig.visualize_gradient_flow(net)
    yield "landscape", fig.visualize_loss_landscape(net, lambda m: nn.functional.mse_loss(m(inputs), targets))


def main() -> int:
    """Draw everything and say where it is."""
    output = Path(sys.argv[1] if len(sys.argv) > 1 else "results/visualizations")
    count = 0
    for example in (
        example_masking_visualization,
        example_attention_visualization,
        example_feature_space_visualization,
        example_embedding_analysis,
        example_training_visualization,
    ):
        for name, figure in example():
            print(fig.save(figure, output / f"{name}.png", dpi=150), flush=True)
            count += 1
    print(f"{count} figures in {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
