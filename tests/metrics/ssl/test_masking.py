import numpy as np
import pytest
import torch

from hjepa_dist_metrics import ConfigError, Masking, MetricCollection
from hjepa_dist_metrics.metrics.ssl.formulas.connected_components import count_components
from tests.helpers.ranks import run_ranks


def numbers(values):
    return {tag.removeprefix("masking/"): float(value) for tag, value in values.items()}


def random_masks(count, patches, seed=0, share=0.5):
    return torch.from_numpy(np.random.default_rng(seed).random((count, patches)) < share)


def regions(cells):
    """Flood fill."""
    todo, found = {(int(r), int(c)) for r, c in zip(*np.nonzero(cells), strict=True)}, 0
    while todo:
        found, edge = found + 1, [todo.pop()]
        while edge:
            r, c = edge.pop()
            for near in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
                if near in todo:
                    todo.remove(near)
                    edge.append(near)
    return found


def spiral(side):
    cells, r, c, dr, dc = np.zeros((side, side), bool), 0, 0, 0, 1

    def taken(place):
        return all(0 <= x < side for x in place) and cells[place]

    while True:
        cells[r, c] = True
        for _ in range(2):
            ahead, beyond = (r + dr, c + dc), (r + 2 * dr, c + 2 * dc)
            if all(0 <= x < side for x in ahead) and not cells[ahead] and not taken(beyond):
                break
            dr, dc = dc, -dr
        else:
            return cells
        r, c = ahead


@pytest.mark.parametrize("grid", [(1, 1), (4, 4), (5, 9), (14, 14)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.6, 0.8])
def test_regions_are_those_of_a_flood_fill(grid, share):
    masks = random_masks(60, grid[0] * grid[1], share=share)
    expected = [regions(mask.reshape(grid).numpy()) for mask in masks]
    assert count_components(masks, grid).tolist() == expected


@pytest.mark.parametrize("side", [5, 14, 31, 63])
def test_a_spiral_and_a_comb_are_one_region(side):
    comb = np.zeros((side, side), bool)
    comb[:, ::2], comb[-1] = True, True
    shapes = [spiral(side), spiral(side).T, spiral(side)[::-1], comb, comb[::-1].copy()]
    masks = torch.from_numpy(np.stack([shape.ravel() for shape in shapes]))
    assert count_components(masks, (side, side)).tolist() == [1] * len(shapes)


def test_counts_by_hand():
    mask = torch.tensor([[1, 1, 0, 0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1, 0, 0, 0]], dtype=torch.bool)
    metric = Masking(9)
    metric.update(mask)
    values = numbers(metric.compute())
    assert values == {
        "mask_ratio": pytest.approx(0.5),
        "num_masked_patches": 4.5,
        "num_unmasked_patches": 4.5,
        "target_mask_count": 4.5,
        "context_target_overlap": 0.0,
        "num_blocks": 1.5,
        "unique_masks": 2.0,
        "repeated_fraction": 0.0,
        "collision_probability": 0.0,
        "repeated_batches": 0.0,
    }


def test_context_target_and_blocks_of_the_caller():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    metric = Masking(3)
    metric.update(
        mask,
        target=torch.tensor([[True, False, False], [True, True, False]]),
        context=torch.tensor([[True, False, True], [False, True, True]]),
        blocks=torch.tensor([[[0, 0, 1, 2], [0, 0, 0, 0]], [[0, 0, 1, 1], [0, 2, 1, 1]]]),
    )
    values = numbers(metric.compute())
    assert values["target_mask_count"] == 1.5
    assert values["context_target_overlap"] == pytest.approx(2 / 3)
    assert values["num_blocks"] == 1.5
    uncounted = Masking(3)
    uncounted.update(mask)  # three patches are no square: there is no grid to count on
    assert "num_blocks" not in numbers(uncounted.compute())


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_same_for_every_split(world_size):
    masks = random_masks(90, 16, seed=5)
    masks[40:60] = masks[:20]
    cuts = [[], [70], [10, 10]][world_size - 1]  # one of three ranks has nothing

    def body(context):
        metric = Masking(16)
        for part in masks.tensor_split(cuts)[context.rank].split(11):
            metric.update(part)
        return numbers(MetricCollection({"m": metric}, context).compute())

    alone = Masking(16)
    alone.update(masks)
    expected = numbers(alone.compute())
    assert run_ranks(world_size, body) == [expected] * world_size
    different = len({tuple(mask) for mask in masks.tolist()})
    assert expected["unique_masks"] == different
    assert expected["repeated_fraction"] == pytest.approx(1 - different / 90)


def test_ranks_that_share_a_seed_are_seen_and_others_are_not():
    def body(context, seed):
        metric = Masking(16)
        for step in range(3):
            metric.update(random_masks(8, 16, seed=seed(context.rank) + step))
        return numbers(MetricCollection({"m": metric}, context).compute())

    shared = run_ranks(2, lambda context: body(context, lambda rank: 7))
    own = run_ranks(2, lambda context: body(context, lambda rank: 100 * rank))
    assert [values["repeated_batches"] for values in shared] == [0.5, 0.5]
    assert [values["repeated_batches"] for values in own] == [0.0, 0.0]


def test_a_generator_that_stands_still_is_seen_in_windows_of_one_step():
    metric = Masking(16)
    mask = random_masks(8, 16)
    read = []
    for step_mask in (mask, mask, mask, ~mask):
        metric.update(step_mask)
        read.append(numbers(metric.compute())["repeated_batches"])
        metric.reset()
    assert read == [0.0, 0.5, 0.5, 0.0]


def test_one_mask_for_all_images_collides():
    metric = Masking(16)
    metric.update(random_masks(1, 16).expand(20, 16))
    values = numbers(metric.compute())
    assert (values["collision_probability"], values["unique_masks"]) == (1.0, 1.0)


def test_padded_samples_do_not_count():
    masks = random_masks(6, 16)
    padded = torch.cat([masks, masks[-1:].expand(3, 16)])
    valid = torch.arange(9) < 6
    alone, together = Masking(16), Masking(16)
    alone.update(masks)
    together.update(padded, valid=valid)
    assert numbers(alone.compute()) == numbers(together.compute())


def test_no_masks_and_one_patch():
    metric = Masking(1)
    assert metric.compute() == {}
    metric.update(torch.zeros((0, 1), dtype=torch.bool))
    assert metric.compute() == {}
    metric.update(torch.ones((2, 1), dtype=torch.bool), valid=torch.zeros(2, dtype=torch.bool))
    assert metric.compute() == {}
    metric.update(torch.zeros((1, 1), dtype=torch.bool))
    values = numbers(metric.compute())
    assert (values["mask_ratio"], values["context_target_overlap"], values["num_blocks"]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": torch.zeros(2, 5, dtype=torch.bool)}, r"mask as bool \[B, 4\], got shape \[2, 5\]"),
        ({"target": torch.zeros(3, 4, dtype=torch.bool)}, r"target as bool \[B, 4\], got shape \[3, 4\]"),
        ({"valid": torch.ones(3, dtype=torch.bool)}, r"valid mask of shape \[2\], got \[3\]"),
        ({"blocks": torch.ones(2, 2)}, r"blocks \[2\] or \[2, K, 4\]"),
    ],
)
def test_wrong_shapes_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        Masking(4).update(**{"mask": torch.zeros(2, 4, dtype=torch.bool), **change})


def test_a_grid_must_hold_the_patches():
    with pytest.raises(ConfigError, match="grid of 2x3 does not have num_patches=4"):
        Masking(4, grid=(2, 3))
    with pytest.raises(ConfigError, match="1 or more"):
        Masking(0)


def test_a_batch_of_padding_does_not_count_in_the_next_window():
    """Two ranks whose last batch is all padding, each with its own masks: nothing is repeated."""

    def body(context):
        generator = torch.Generator().manual_seed(context.rank)
        metric = Masking(16)
        metric.update(torch.rand(4, 16, generator=generator) > 0.5)
        metric.update(torch.zeros(4, 16, dtype=torch.bool), valid=torch.zeros(4, dtype=torch.bool))
        metric.reset()
        metric.update(torch.rand(4, 16, generator=generator) > 0.5)
        return float(MetricCollection({"m": metric}, context).compute()["masking/repeated_batches"])

    assert run_ranks(2, body) == [0.0, 0.0]


def test_padding_at_the_end_of_a_window_hides_no_repeat():
    metric, mask = Masking(16), torch.rand(4, 16, generator=torch.Generator().manual_seed(0)) > 0.5
    metric.update(mask)
    metric.update(mask, valid=torch.zeros(4, dtype=torch.bool))
    metric.reset()
    metric.update(mask)
    assert float(metric.compute()["masking/repeated_batches"]) == 0.5
