"""Figures come without pyplot, save by suffix, become pixels, and leave no memory behind."""

import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

import hjepa_dist_metrics.figures as figures
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.figures import plot_training_curves, to_image, visualize_multi_block_masking
from hjepa_dist_metrics.figures.inputs import picture, pictures

NAMES = (
    "extract_attention_maps",
    "visualize_attention_maps",
    "visualize_multihead_attention",
    "visualize_attention_rollout",
    "visualize_hierarchical_attention",
    "visualize_patch_to_patch_attention",
    "visualize_masking_strategy",
    "visualize_masked_image",
    "visualize_context_target_regions",
    "compare_masking_strategies",
    "animate_masking_process",
    "visualize_multi_block_masking",
    "plot_masking_statistics",
    "visualize_predictions",
    "visualize_hierarchical_predictions",
    "visualize_feature_space",
    "visualize_nearest_neighbors",
    "visualize_reconstruction",
    "visualize_embedding_distribution",
    "plot_training_curves",
    "plot_hierarchical_losses",
    "visualize_loss_landscape",
    "visualize_gradient_flow",
    "plot_collapse_metrics",
    "plot_ema_momentum",
    "plot_probes",
    "load_training_logs",
)

LOGS = {"train_loss": [3.0, 2.0, 1.0]}


def test_all_functions_are_there_and_documented():
    assert len(NAMES) == 27
    for name in NAMES:
        assert getattr(figures, name).__doc__, name


def test_importing_and_drawing_never_touches_pyplot():
    code = """
import sys
import hjepa_dist_metrics.figures as f
assert not [m for m in sys.modules if m.split(".")[0] in ("matplotlib", "sklearn", "PIL", "tensorboard")]
f.plot_training_curves({"a": [1.0, 2.0]})
f.visualize_multi_block_masking(2)
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("suffix", "head"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml"), ("jpg", b"\xff\xd8")]
)
def test_files_are_what_their_suffix_says(tmp_path: Path, suffix: str, head: bytes):
    path = tmp_path / "new" / f"curves.{suffix}"
    plot_training_curves(LOGS, save_path=path, dpi=150, figsize=(4, 3))
    assert path.read_bytes().startswith(head)
    if suffix in ("png", "jpg"):
        with Image.open(path) as image:
            assert image.size == (600, 450)


def test_bad_paths_and_resolutions_are_told(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"cannot save a figure as 'x\.bmp': use one of \.png"):
        plot_training_curves(LOGS, save_path=tmp_path / "x.bmp")
    with pytest.raises(ConfigError, match="dpi is 5; allowed: 50 to 600"):
        plot_training_curves(LOGS, save_path=tmp_path / "x.png", dpi=5)
    assert not list(tmp_path.iterdir())


def test_pixels_are_the_figures_own(tmp_path: Path):
    figure = plot_training_curves(LOGS, figsize=(5, 3))
    pixels = to_image(figure).pixels
    assert (pixels.dtype, pixels.shape) == (np.uint8, (300, 500, 3))
    figures.save(figure, tmp_path / "x.png", dpi=100)
    with Image.open(tmp_path / "x.png") as image:
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), pixels)
    assert to_image(plot_training_curves(LOGS)).pixels.shape[1] == 900


def test_every_kind_of_picture_becomes_one():
    grey = np.linspace(0, 1, 12).reshape(3, 4)
    for image in (grey, grey[None], grey[:, :, None], np.round(grey * 255).astype(np.uint8)):
        np.testing.assert_allclose(picture(image)[:, :, 1], grey, atol=1 / 255)
    np.testing.assert_allclose(picture(grey * 4 - 2)[:, :, 0], grey, atol=1e-12)  # stretched
    assert picture(np.full((3, 8, 8), np.nan)).max() == 0
    assert len(pictures(np.zeros((5, 3, 8, 8)))) == 5
    assert len(pictures(np.zeros((8, 8, 3)))) == 1
    with pytest.raises(ConfigError, match=r"got \[5, 8, 8\]"):
        picture(np.zeros((5, 8, 8)))


def test_memory_does_not_grow_over_two_hundred_figures():
    """After the first fifty, which fill the font and layout caches, another 150 figures cost under 24 MB."""
    process = psutil.Process()

    def draw(count: int) -> None:
        for _ in range(count):
            to_image(visualize_multi_block_masking(2, grid=(6, 6), figsize=(4, 2)))
            gc.collect(1)

    draw(50)
    gc.collect()
    before = process.memory_info().rss
    draw(150)
    gc.collect()
    assert process.memory_info().rss - before < 24 * 2**20
