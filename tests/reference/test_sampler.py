import pytest
import torch
from hypothesis import given, settings, strategies as st

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.reference.data import GlobalBatchSampler, random_shift


def steps(world_size, *, samples=50, batch=12, seed=0, epoch=0, start=0, accumulation=1):
    """Return, for each micro-step, the ranks' shares."""
    ranks = []
    for rank in range(world_size):
        sampler = GlobalBatchSampler(samples, batch, rank, world_size, seed, accumulation)
        sampler.set_epoch(epoch, start)
        ranks.append(list(sampler))
        assert len(ranks[-1]) == len(sampler)
    return list(zip(*ranks, strict=True))


@settings(max_examples=80, deadline=None)
@given(
    world_size=st.integers(1, 6),
    accumulation=st.integers(1, 3),
    extra=st.integers(0, 20),
    samples=st.integers(0, 100),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
)
def test_ranks_share_out_the_batches_of_one_process(world_size, accumulation, extra, samples, seed, epoch):
    batch = world_size * accumulation + extra
    kwargs = {"samples": batch + samples, "batch": batch, "seed": seed, "epoch": epoch}
    alone = [share for (share,) in steps(1, accumulation=accumulation, **kwargs)]
    shared = steps(world_size, accumulation=accumulation, **kwargs)
    assert len(shared) == len(alone) == accumulation * ((batch + samples) // batch)
    for whole, shares in zip(alone, shared, strict=True):
        sizes = [len(share) for share in shares]
        assert sorted(i for share in shares for i in share) == sorted(whole)
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 1
    drawn = [i for share in alone for i in share]
    assert len(set(drawn)) == len(drawn), "no sample twice in an epoch"
    unsplit = [share for (share,) in steps(1, **kwargs)]
    for s, whole in enumerate(unsplit):
        micro = alone[s * accumulation : (s + 1) * accumulation]
        assert sorted(i for share in micro for i in share) == sorted(whole)


def test_resuming_continues_the_epoch():
    assert steps(2, epoch=3, start=2, accumulation=2) == steps(2, epoch=3, accumulation=2)[4:]


def test_epochs_and_seeds_have_their_own_order():
    assert steps(1, epoch=0) != steps(1, epoch=1)
    assert steps(1, seed=0) != steps(1, seed=1)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"global_batch_size": 3, "world_size": 4}, "batch_size is 3; allowed: 4 or more"),
        (
            {"global_batch_size": 7, "world_size": 2, "accumulation_steps": 4},
            "batch_size is 7; allowed: 8 or more",
        ),
        ({"global_batch_size": 51}, "batch_size is 51; allowed: at most 50"),
        ({"global_batch_size": 5, "rank": 2, "world_size": 2}, "rank is 2; allowed: 0 to 1"),
    ],
)
def test_impossible_batches_are_refused(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        GlobalBatchSampler(50, **kwargs)


def test_an_impossible_start_is_refused():
    with pytest.raises(ConfigError, match="start_step is 5; allowed: 0 to 4"):
        GlobalBatchSampler(50, 12).set_epoch(0, 5)


def test_a_shift_belongs_to_the_sample_and_moves_the_pixels():
    images = torch.arange(30 * 2 * 5 * 4, dtype=torch.float32).view(30, 2, 5, 4)
    indices = torch.arange(100, 130)
    moved = random_shift(images, indices, max_shift=2, seed=1, epoch=4)
    picked = torch.tensor([7, 2, 29])
    alone = random_shift(images[picked], indices[picked], max_shift=2, seed=1, epoch=4)
    assert torch.equal(alone, moved[picked])
    assert not torch.equal(moved, random_shift(images, indices, max_shift=2, seed=1, epoch=5))
    offsets = set()
    for image, out in zip(images, moved, strict=True):
        candidates = {}
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                rows = (torch.arange(5) + dy).clamp(0, 4)
                columns = (torch.arange(4) + dx).clamp(0, 3)
                candidates[dy, dx] = image[:, rows][:, :, columns]
        offsets |= {key for key, value in candidates.items() if torch.equal(value, out)}
        assert any(torch.equal(value, out) for value in candidates.values())
    assert len(offsets) > 8


def test_no_shift_is_the_identity():
    images = torch.rand(2, 1, 4, 4)
    assert random_shift(images, torch.arange(2), max_shift=0, seed=0, epoch=0) is images
