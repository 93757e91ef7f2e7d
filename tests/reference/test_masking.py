import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.reference.data.randomness import indexed_uniform
from hjepa_dist_metrics.reference.hjepa.masking import MultiBlockMaskGenerator


def test_a_sample_has_the_same_mask_in_every_batch():
    generator = MultiBlockMaskGenerator((4, 4), seed=3)
    whole = generator.generate(torch.arange(40), epoch=2)
    picked = torch.tensor([31, 4, 17])
    assert torch.equal(MultiBlockMaskGenerator((4, 4), seed=3).generate(picked, epoch=2), whole[picked])


@pytest.mark.parametrize(("seed", "epoch"), [(3, 3), (4, 2)])
def test_seed_and_epoch_change_the_masks(seed, epoch):
    indices = torch.arange(64)
    base = MultiBlockMaskGenerator((8, 8), seed=3).generate(indices, epoch=2)
    other = MultiBlockMaskGenerator((8, 8), seed=seed).generate(indices, epoch=epoch)
    assert (base != other).any(dim=1).float().mean() > 0.9


def test_samples_differ_from_each_other():
    masks = MultiBlockMaskGenerator((8, 8)).generate(torch.arange(200), epoch=0)
    assert len(torch.unique(masks, dim=0)) > 190


def test_calling_with_a_batch_size_walks_through_the_indices():
    generator = MultiBlockMaskGenerator((4, 4), seed=1)
    walked = torch.cat([generator(3), generator(5)])
    assert torch.equal(walked, generator.generate(torch.arange(8), epoch=0))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 7),
    columns=st.integers(2, 7),
    blocks=st.integers(1, 6),
    high=st.floats(0.05, 1.0),
    seed=st.integers(0, 2**40),
)
def test_the_mask_is_the_union_of_its_blocks_and_leaves_patches_visible(rows, columns, blocks, high, seed):
    generator = MultiBlockMaskGenerator((rows, columns), blocks, (0.05, high), (0.3, 3.0), seed=seed)
    drawn = generator.generate_blocks(torch.arange(10), epoch=1)
    assert drawn.mask.shape == (10, rows * columns)
    assert drawn.blocks.shape == (10, blocks, 4)
    for mask, sample_blocks in zip(drawn.mask.numpy(), drawn.blocks.numpy(), strict=True):
        union = np.zeros((rows, columns), dtype=bool)
        for top, left, height, width in sample_blocks:
            assert top + height <= rows
            assert left + width <= columns
            union[top : top + height, left : left + width] = True
        np.testing.assert_array_equal(union.reshape(-1), mask)
        assert 1 <= mask.sum() <= rows * columns - 1


def test_min_visible_is_kept():
    generator = MultiBlockMaskGenerator((4, 4), 6, (0.3, 0.6), min_visible=7)
    assert (~generator.generate(torch.arange(300), 0)).sum(dim=1).min() >= 7


def test_block_areas_lie_around_the_scale():
    blocks = (
        MultiBlockMaskGenerator((20, 20), 1, (0.2, 0.2), (1.0, 1.0))
        .generate_blocks(torch.arange(50), 0)
        .blocks
    )
    # 0.2 * 400 = 80 patches, a square of side sqrt(80) = 8.94, rounded to 9
    assert set(blocks[..., 2:].flatten().tolist()) == {9}


@pytest.mark.parametrize("min_visible", [0, 16])
def test_an_impossible_min_visible_is_refused(min_visible):
    with pytest.raises(
        ConfigError, match=rf"min_visible is {min_visible}; allowed: 1 to 15 on a grid of 4x4"
    ):
        MultiBlockMaskGenerator((4, 4), min_visible=min_visible)


def test_indexed_uniform_is_uniform_and_independent_between_streams():
    indices = torch.arange(20000)
    first = indexed_uniform(indices, 2, seed=0, epoch=0, stream="mask")
    second = indexed_uniform(indices, 2, seed=0, epoch=0, stream="shift")
    counts = np.histogram(first[:, 0], bins=10, range=(0, 1))[0]
    # 2,000 a bin, standard deviation sqrt(20000 * 0.1 * 0.9) = 42
    assert np.abs(counts - 2000).max() < 5 * 42
    for other in (first[:, 1], second[:, 0]):
        assert abs(np.corrcoef(first[:, 0], other)[0, 1]) < 5 / np.sqrt(20000)
