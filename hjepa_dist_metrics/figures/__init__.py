"""Figures: arrays, models and logs in, matplotlib figures out.

Every function returns a `matplotlib.figure.Figure` that pyplot does not know, draws into `ax` or `axes`
where they are given, and saves to `save_path` (PNG, PDF, SVG or JPG by its suffix, at `dpi`). matplotlib is
imported when a figure is drawn (extra `figures`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hjepa_dist_metrics.figures.attention.capture import extract_attention_maps as extract_attention_maps
    from hjepa_dist_metrics.figures.attention.pictures import (
        visualize_attention_maps as visualize_attention_maps,
        visualize_attention_rollout as visualize_attention_rollout,
        visualize_hierarchical_attention as visualize_hierarchical_attention,
        visualize_multihead_attention as visualize_multihead_attention,
        visualize_patch_to_patch_attention as visualize_patch_to_patch_attention,
    )
    from hjepa_dist_metrics.figures.attention.rollout import attention_rollout as attention_rollout
    from hjepa_dist_metrics.figures.canvas import save as save, to_image as to_image
    from hjepa_dist_metrics.figures.masks.pictures import (
        animate_masking_process as animate_masking_process,
        compare_masking_strategies as compare_masking_strategies,
        plot_masking_statistics as plot_masking_statistics,
        visualize_context_target_regions as visualize_context_target_regions,
        visualize_masked_image as visualize_masked_image,
        visualize_masking_strategy as visualize_masking_strategy,
        visualize_multi_block_masking as visualize_multi_block_masking,
    )
    from hjepa_dist_metrics.figures.predictions.pictures import (
        visualize_embedding_distribution as visualize_embedding_distribution,
        visualize_feature_space as visualize_feature_space,
        visualize_hierarchical_predictions as visualize_hierarchical_predictions,
        visualize_nearest_neighbors as visualize_nearest_neighbors,
        visualize_predictions as visualize_predictions,
        visualize_reconstruction as visualize_reconstruction,
    )
    from hjepa_dist_metrics.figures.training.landscape import (
        loss_landscape as loss_landscape,
        visualize_loss_landscape as visualize_loss_landscape,
    )
    from hjepa_dist_metrics.figures.training.logs import load_training_logs as load_training_logs
    from hjepa_dist_metrics.figures.training.pictures import (
        plot_collapse_metrics as plot_collapse_metrics,
        plot_ema_momentum as plot_ema_momentum,
        plot_hierarchical_losses as plot_hierarchical_losses,
        plot_training_curves as plot_training_curves,
        visualize_gradient_flow as visualize_gradient_flow,
    )
    from hjepa_dist_metrics.figures.training.probes import plot_probes as plot_probes
    from hjepa_dist_metrics.figures.training.series import Series as Series, smooth as smooth

# Where each function lives. It is imported at its first use, so that what draws a run's figures need not load
# torch; the imports above say the same to type checkers.
_HOMES = {
    "attention.pictures": (
        "visualize_attention_maps",
        "visualize_attention_rollout",
        "visualize_hierarchical_attention",
        "visualize_multihead_attention",
        "visualize_patch_to_patch_attention",
    ),
    "canvas": (
        "save",
        "to_image",
    ),
    "attention.capture": ("extract_attention_maps",),
    "training.landscape": (
        "loss_landscape",
        "visualize_loss_landscape",
    ),
    "training.logs": ("load_training_logs",),
    "masks.pictures": (
        "animate_masking_process",
        "compare_masking_strategies",
        "plot_masking_statistics",
        "visualize_context_target_regions",
        "visualize_masked_image",
        "visualize_masking_strategy",
        "visualize_multi_block_masking",
    ),
    "predictions.pictures": (
        "visualize_embedding_distribution",
        "visualize_feature_space",
        "visualize_hierarchical_predictions",
        "visualize_nearest_neighbors",
        "visualize_predictions",
        "visualize_reconstruction",
    ),
    "attention.rollout": ("attention_rollout",),
    "training.probes": ("plot_probes",),
    "training.series": (
        "Series",
        "smooth",
    ),
    "training.pictures": (
        "plot_collapse_metrics",
        "plot_ema_momentum",
        "plot_hierarchical_losses",
        "plot_training_curves",
        "visualize_gradient_flow",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
