"""Attention pictures show the planted spot, in the image's own coordinates, on honest scales."""

import resource
import time

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.figures import (
    attention_rollout,
    visualize_attention_maps,
    visualize_attention_rollout,
    visualize_hierarchical_attention,
    visualize_multihead_attention,
    visualize_patch_to_patch_attention,
)
from hjepa_dist_metrics.figures.attention.rollout import (
    TokenLayout,
    attention_distance,
    fuse_heads,
    query_weights,
    token_layout,
)
from hjepa_dist_metrics.reference.hjepa.encoder import VisionEncoder
from tests.helpers.models import GRID, SIZE, DinoAttention, PatchViT, SelfMHA, image

ROWS, COLUMNS = GRID
SPOT = (2, 4)


def planted(prefix: int = 1, layers: int = 3, heads: int = 2, weight: float = 0.6) -> dict[str, torch.Tensor]:
    """Maps whose every query gives `weight` to one patch and the rest to all tokens alike."""
    tokens = prefix + ROWS * COLUMNS
    attention = torch.full((1, heads, tokens, tokens), (1 - weight) / tokens)
    attention[..., prefix + SPOT[0] * COLUMNS + SPOT[1]] += weight
    return {f"layer{i}": attention.clone() for i in range(layers)}


def heat(ax) -> np.ndarray:
    return np.asarray(ax.images[-1].get_array())


def heat_panels(figure: Figure) -> list:
    return [ax for ax in figure.axes if ax.images and ax.images[-1].get_array().shape == GRID]


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize(
    ("draw", "count"),
    [
        (visualize_attention_maps, 9),
        (visualize_multihead_attention, 2),
        (visualize_attention_rollout, 1),
        (visualize_hierarchical_attention, 3),
        (visualize_patch_to_patch_attention, 1),
    ],
)
def test_the_planted_spot_is_where_it_was_planted(draw, count: int, prefix: int):
    figure = draw(planted(prefix), image(), grid=GRID)
    found = heat_panels(figure)
    assert len(found) == count
    for ax in found:
        assert np.unravel_index(heat(ax).argmax(), GRID) == SPOT
        shown = ax.images[-1]
        assert shown.get_extent() == [-0.5, SIZE[1] - 0.5, SIZE[0] - 0.5, -0.5]
        assert shown.norm.vmin == 0
        assert shown.norm.vmax == pytest.approx(max(float(heat(a).max()) for a in found))


def test_weights_are_drawn_unchanged():
    model = PatchViT([SelfMHA() for _ in range(2)]).eval()
    from hjepa_dist_metrics.figures import extract_attention_maps

    weights = extract_attention_maps(model, image(), [-1])["blocks.1.attn"]
    figure = visualize_multihead_attention(model, image())
    for head, ax in enumerate(heat_panels(figure)):
        np.testing.assert_array_equal(heat(ax), weights[0, head, 0, 1:].reshape(GRID).double().numpy())
        assert ax.get_title() == f"head {head}"
    assert "blocks.1.attn" in figure.get_suptitle()


def test_layers_and_heads_have_their_places():
    maps = planted(layers=2, heads=3)
    maps["layer1"][:, 2] = torch.eye(25)
    figure = visualize_attention_maps(maps, image(), heads=[0, 2])
    titles = [ax.get_title() for ax in heat_panels(figure)]
    assert titles == ["layer0\nhead 0", "layer0\nhead 2", "layer1\nhead 0", "layer1\nhead 2"]
    assert heat(heat_panels(figure)[3]).sum() == 0  # the class token looks at itself only


def test_the_patch_asked_about_is_framed():
    maps = planted(0, layers=1)
    row = torch.zeros(24)
    row[5] = 1.0  # row 0, column 5
    maps["layer0"][0, :, 3 * COLUMNS + 1] = row
    figure = visualize_patch_to_patch_attention(maps, image(), (3, 1))
    (panel,) = heat_panels(figure)
    assert np.unravel_index(heat(panel).argmax(), GRID) == (0, 5)
    for ax in figure.axes[:2]:
        (frame,) = [p for p in ax.patches if isinstance(p, Rectangle)]
        assert (frame.get_x(), frame.get_y(), frame.get_width(), frame.get_height()) == (7.5, 23.5, 8, 8)


def test_rollout_by_hand():
    """Two tokens. W1 = [[1, 0], [1/2, 1/2]] gives A1 = [[1, 0], [1/4, 3/4]]; W2 = [[1/2, 1/2], [0, 1]] gives
    A2 = [[3/4, 1/4], [0, 1]]; A2 A1 = [[13/16, 3/16], [1/4, 3/4]]."""
    first = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])
    second = torch.tensor([[[[0.5, 0.5], [0.0, 1.0]]]])
    wanted = torch.tensor([[[13 / 16, 3 / 16], [1 / 4, 3 / 4]]])
    assert torch.equal(attention_rollout([first, second]), wanted)


def test_head_fusion_and_discarding_by_hand():
    """The maximum of the heads [[.8, .2], [.4, .6]] and [[.6, .4], [0, 1]] is [[.8, .4], [.4, 1]].
    Without its lowest half, [[.8, 0], [0, 1]], only the diagonal is left."""
    heads = torch.tensor([[[[0.8, 0.2], [0.4, 0.6]], [[0.6, 0.4], [0.0, 1.0]]]])
    assert torch.equal(fuse_heads(heads, "max"), torch.tensor([[[0.8, 0.4], [0.4, 1.0]]]))
    assert torch.equal(fuse_heads(heads, "min"), torch.tensor([[[0.6, 0.2], [0.0, 0.6]]]))
    assert torch.equal(attention_rollout([heads], "max", 0.5), torch.eye(2)[None])
    kept = attention_rollout([heads], "max", 0.0)
    torch.testing.assert_close(kept, torch.tensor([[[1.8 / 2.2, 0.4 / 2.2], [0.4 / 2.4, 2 / 2.4]]]))


def test_rollout_rows_are_shares():
    model = PatchViT([DinoAttention() for _ in range(4)])
    from hjepa_dist_metrics.figures import extract_attention_maps

    rollout = attention_rollout(extract_attention_maps(model, image()))
    torch.testing.assert_close(rollout.sum(dim=-1), torch.ones(1, 25))


def test_attention_distance_by_hand():
    """A 1x3 grid: everyone looks at patch 0, at distances 0, 1 and 2, on average 1; at itself: 0."""
    to_first = torch.zeros(1, 1, 3, 3)
    to_first[..., 0] = 1
    layout = TokenLayout(0, (1, 3))
    assert attention_distance(to_first, layout).item() == 1.0
    assert attention_distance(torch.eye(3)[None, None], layout).item() == 0.0
    figure = visualize_hierarchical_attention(
        {"a": to_first, "b": torch.eye(3)[None, None]}, image(size=(8, 24))
    )
    (line,) = next(ax for ax in figure.axes if "distance" in ax.get_ylabel()).lines
    np.testing.assert_array_equal(line.get_ydata(), [1.0, 0.0])


@pytest.mark.parametrize(
    ("query", "wanted"),
    [("cls", 0), ("mean", None), (4, 1 + 4), ((2, 1), 1 + 2 * COLUMNS + 1), ("auto", 0)],
)
def test_queries_pick_their_rows(query, wanted):
    attention = torch.rand(25, 25)
    row = attention[1:].mean(dim=0) if wanted is None else attention[wanted]
    assert torch.equal(query_weights(attention, TokenLayout(1, GRID), query), row[1:].reshape(GRID))


def test_grids_are_found():
    assert token_layout(PatchViT([]), image(), 25) == TokenLayout(1, GRID)
    assert token_layout(VisionEncoder(GRID, 8, 3, 24, 1, 3, 2.0), image(), 24) == TokenLayout(0, GRID)
    assert token_layout(None, image(), 29) == TokenLayout(5, GRID)
    assert token_layout(None, image(size=(224, 224)), 197) == TokenLayout(1, (14, 14))
    with pytest.raises(ConfigError, match="25 tokens do not fit a grid of 5x6 patches"):
        token_layout(None, image(), 25, grid=(5, 6))
    with pytest.raises(ConfigError, match="cannot tell which of 2 tokens"):
        token_layout(None, image(size=(7, 48)), 2)


def test_bad_requests_are_told():
    maps = planted()
    for arguments, message in (
        ({"query": "cls"}, "no class token"),
        ({"query": "best"}, "query is 'best'"),
        ({"query": (9, 0)}, r"no patch \(9, 0\) in a grid of 4x6"),
        ({"layer": 5}, r"got 3 attention maps and layers=\[5\]"),
        ({"axes": [1, 2, 3]}, "draws into 2 axes, got 3"),
    ):
        source = planted(0) if arguments.get("query") == "cls" else maps
        with pytest.raises(ConfigError, match=message):
            visualize_multihead_attention(source, image(), **arguments)
    with pytest.raises(ConfigError, match="expected one image"):
        visualize_attention_maps(maps, torch.stack([image(), image()]))
    with pytest.raises(ConfigError, match="has 2 heads, got head 2"):
        visualize_patch_to_patch_attention(maps, image(), head=2)
    with pytest.raises(ConfigError, match="discard_ratio is 1"):
        visualize_attention_rollout(maps, image(), discard_ratio=1.0)
    with pytest.raises(ConfigError, match="head_fusion is 'sum'"):
        attention_rollout(maps, "sum")
    with pytest.raises(ConfigError, match="maps of one size"):
        visualize_attention_maps({**maps, "odd": torch.full((1, 1, 9, 9), 1 / 9)}, image())


def test_given_axes_are_drawn_into():
    figure = Figure()
    axes = figure.subplots(1, 2)
    assert visualize_attention_rollout(planted(), image(), axes=axes) is figure
    assert axes[0].images
    assert np.unravel_index(heat(axes[1]).argmax(), GRID) == SPOT


def test_a_base_sized_rollout_is_light():
    """ViT-B/16 at 224x224: 12 layers of 12 heads, under 2 GB at its peak; seconds are told, not asserted."""
    model = VisionEncoder((14, 14), 16, 3, 768, 12, 12, 4.0)
    begun = time.perf_counter()
    figure = visualize_attention_rollout(model, image(size=(224, 224)), grid=(14, 14))
    print(f"rollout of ViT-B/16: {time.perf_counter() - begun:.1f} s")
    assert heat(figure.axes[1]).shape == (14, 14)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 * 1024**2  # KiB
