import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.parallel import unwrap
from hjepa_dist_metrics.reference.hjepa.config import EMAConfig, ModelConfig, ObjectiveConfig
from hjepa_dist_metrics.reference.hjepa.ema import ema_momentum, ema_update
from hjepa_dist_metrics.reference.hjepa.hierarchy import level_grids, pool_any, pool_tokens
from hjepa_dist_metrics.reference.hjepa.masking import MultiBlockMaskGenerator
from hjepa_dist_metrics.reference.hjepa.model import HJEPA


def small_model(image_size=(8, 8), **changes):
    torch.manual_seed(0)
    defaults = {"patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2, "predictor_dim": 16}
    return HJEPA(ModelConfig(**{**defaults, **changes}), image_size, total_steps=10)


def batch(model, size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows, columns = model.grid
    images = torch.randn(size, 1, rows * 2, columns * 2, generator=generator)
    return images, MultiBlockMaskGenerator(model.grid, seed=seed).generate(torch.arange(size), 0)


def pixels_of(flags, grid, patch=2):
    """Spread a flag for each patch over its pixels: bool [B, 1, H, W]."""
    tiles = flags.view(-1, 1, *grid)
    return tiles.repeat_interleave(patch, 2).repeat_interleave(patch, 3)


def test_shapes_of_all_levels():
    model = small_model()
    images, mask = batch(model)
    out = model(images, mask)
    assert model.get_num_patches() == 16
    assert model.num_hierarchies == 3
    for key in ("predictions", "targets"):
        assert [tuple(level.shape) for level in out[key]] == [(6, 16, 16), (6, 4, 16), (6, 1, 16)]
    assert torch.equal(out["masks_valid"][0], mask)
    assert torch.equal(out["context_valid"].sum(dim=1), (~mask).sum(dim=1))
    assert len(model(images, mask, return_all_levels=False)["predictions"]) == 1


def test_the_context_encoder_never_sees_masked_patches():
    model = small_model()
    images, mask = batch(model)
    disturbed = torch.where(pixels_of(mask, model.grid), images + 100.0, images)
    clean, other = model(images, mask), model(disturbed, mask)
    assert (~clean["context_valid"]).any(), "the batch should hold padding too"
    assert torch.equal(clean["context_features"], other["context_features"])
    for level in range(model.num_hierarchies):
        assert torch.equal(clean["predictions"][level], other["predictions"][level])
    assert not torch.allclose(clean["targets"][0], other["targets"][0])


def test_padding_of_the_context_changes_nothing():
    model = small_model()
    images, mask = batch(model)
    together = model(images, mask)
    for i in range(len(images)):
        alone = model(images[i : i + 1], mask[i : i + 1], max_visible=16)
        valid = together["context_valid"][i]
        torch.testing.assert_close(
            alone["context_features"][0][alone["context_valid"][0]], together["context_features"][i][valid]
        )
        torch.testing.assert_close(alone["predictions"][2][0], together["predictions"][2][i])
    assert (together["context_features"][~together["context_valid"]] == 0).all()


def test_padding_patches_are_neither_seen_nor_counted():
    model = small_model()
    images, mask = batch(model)
    valid = torch.ones_like(mask).view(-1, 4, 4)
    valid[:3, :, 2:] = False
    valid = valid.view(-1, 16)
    clean = model(images, mask, patch_valid=valid)
    noise = torch.where(pixels_of(valid, model.grid), images, images - 50.0)
    other = model(noise, mask, patch_valid=valid)
    for key in ("predictions", "targets"):
        for a, b, counted in zip(clean[key], other[key], clean["masks_valid"], strict=True):
            assert torch.equal(a[counted], b[counted])
    assert torch.equal(clean["masks_valid"][0], mask & valid)
    assert not clean["masks_valid"][1][:3].view(3, 2, 2)[:, :, 1].any()
    assert not clean["tokens_valid"][1][:3].view(3, 2, 2)[:, :, 1].any()


def test_a_sample_without_context_is_finite_and_counts_nowhere():
    model = small_model()
    images, mask = batch(model)
    valid = torch.ones_like(mask)
    mask[0] = True
    valid[1] = False
    out = model(images, mask, patch_valid=valid)
    assert not out["context_valid"][:2].any()
    for level, counted in zip(out["predictions"], out["masks_valid"], strict=True):
        assert level.isfinite().all()
        assert not counted[:2].any()
        assert counted[2:].any()


def test_non_square_odd_grids_pool_like_numpy():
    rng = np.random.default_rng(0)
    grid, x, valid = (3, 5), rng.normal(size=(2, 15, 4)), rng.random((2, 15)) < 0.7
    pooled = pool_tokens(torch.from_numpy(x), torch.from_numpy(valid), grid, 1).numpy()
    flagged = pool_any(torch.from_numpy(valid), grid, 1).numpy()
    assert level_grids(grid, 4) == [(3, 5), (2, 3), (1, 2), (1, 1)]
    tiles, real = x.reshape(2, 3, 5, 4), valid.reshape(2, 3, 5)
    for b, row, column in np.ndindex(2, 2, 3):
        window = (b, slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2))
        members = tiles[window][real[window]]
        expected = members.mean(axis=0) if len(members) else np.zeros(4)
        np.testing.assert_allclose(pooled[b, row * 3 + column], expected, atol=1e-12)
        assert flagged[b, row * 3 + column] == bool(len(members))


def test_non_square_images_run():
    model = small_model(image_size=(6, 10), num_hierarchies=4, hierarchy_weights=(1, 1, 1, 1))
    out = model(*batch(model, 3))
    assert [level.shape[1] for level in out["targets"]] == [15, 6, 2, 1]


def test_more_levels_than_the_grid_allows_are_refused():
    with pytest.raises(
        ConfigError, match=r"num_hierarchies is 4, but a grid of 4x4 patches allows at most 3"
    ):
        small_model(num_hierarchies=4, hierarchy_weights=(1, 1, 1, 1))


def test_a_patch_size_that_does_not_divide_the_image_is_refused():
    with pytest.raises(
        ConfigError, match=r"patch_size is 3; allowed: a divisor of both sides of the images, 8x8"
    ):
        small_model(patch_size=3)


def test_only_student_and_predictor_learn():
    model = small_model()
    out = model(*batch(model))
    sum(level.square().sum() for level in out["predictions"]).backward()
    assert all(p.grad is None and not p.requires_grad for p in model.target_encoder.parameters())
    assert all(p.grad is not None for p in model.context_encoder.parameters())
    assert not out["targets"][0].requires_grad


def test_without_stop_gradient_the_targets_carry_one():
    model = small_model(objective=ObjectiveConfig(stop_gradient=False))
    out = model(*batch(model))
    assert all(level.requires_grad for level in out["targets"])


def test_extract_features_pools_the_chosen_encoder():
    model = small_model()
    images, _ = batch(model)
    with torch.no_grad():
        for p in model.context_encoder.parameters():
            p.add_(0.1)
    fine = model.extract_features(images)
    assert not torch.allclose(fine, model.extract_features(images, use_target_encoder=False))
    torch.testing.assert_close(model.extract_features(images, level=2), fine.mean(dim=1, keepdim=True))
    assert not fine.requires_grad


class Wrapper(nn.Module):
    """Hide a module as DistributedDataParallel does."""

    def __init__(self, module):
        super().__init__()
        self.module = module


class Compiled(nn.Module):
    """Hide a module as torch.compile does."""

    def __init__(self, module):
        super().__init__()
        self._orig_mod = module


# Importing torch's compiler warns about torch's own use of torch.jit.
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "wrap", [lambda m: m, Wrapper, Compiled, lambda m: Wrapper(Compiled(m)), torch.compile]
)
def test_the_average_moves_through_wrappers(wrap):
    torch.manual_seed(0)
    source, target = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    nn.init.normal_(source.weight)
    source.running_mean.fill_(7.0)
    expected = 0.75 * target.weight.detach().double().numpy() + 0.25 * source.weight.detach().double().numpy()
    ema_update(wrap(source), target, 0.75)
    np.testing.assert_allclose(target.weight.detach().numpy(), expected, rtol=1e-6)
    assert (target.running_mean == 7.0).all()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_unwrap_finds_the_model_in_any_nesting():
    model = small_model()
    assert unwrap(Wrapper(torch.compile(model))) is model
    assert unwrap(model) is model


def test_update_target_encoder_follows_the_schedule_behind_wrapped_encoders():
    model = small_model(ema=EMAConfig(momentum_start=0.5, momentum_end=1.0))
    with torch.no_grad():
        for p in model.context_encoder.parameters():
            p.add_(1.0)
    before = copy.deepcopy(model.target_encoder).state_dict()
    inner = model.context_encoder
    model.context_encoder = Compiled(inner)
    assert model.update_target_encoder(0) == 0.5
    for name, value in model.target_encoder.named_parameters():
        torch.testing.assert_close(value, before[name] + 0.5)
    frozen = copy.deepcopy(model.target_encoder).state_dict()
    assert model.update_target_encoder(9) == 1.0
    for name, value in model.target_encoder.named_parameters():
        assert torch.equal(value, frozen[name])


def test_modules_that_differ_are_refused():
    with pytest.raises(ConfigError, match="bias"):
        ema_update(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), 0.9)


def test_momentum_rises_along_half_a_cosine():
    values = [ema_momentum(step, 5, 0.9, 1.0) for step in range(7)]
    expected = [1.0 - 0.05 * (1 + math.cos(math.pi * min(s, 4) / 4)) for s in range(7)]
    assert values == pytest.approx(expected)
    assert values[0] == pytest.approx(0.9)
    assert values[4:] == [1.0, 1.0, 1.0]


def test_patches_are_cut_rows_first():
    model = small_model(image_size=(4, 6), num_hierarchies=2, hierarchy_weights=(1, 1))
    embedding = model.context_encoder.patch_embed
    images = torch.randn(2, 1, 4, 6)
    weight, bias = embedding.proj.weight, embedding.proj.bias
    oracle = torch.nn.functional.conv2d(images, weight.view(-1, 1, 2, 2), bias, stride=2)
    torch.testing.assert_close(embedding(images), oracle.flatten(2).transpose(1, 2))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_compiled_model_is_one_graph_with_the_same_predictions():
    model = small_model()
    images, mask = batch(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for ours, theirs in zip(
        compiled(images, mask)["predictions"], model(images, mask)["predictions"], strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_features_of_padded_images_stay_in_their_places():
    model = small_model()
    images, mask = batch(model)
    valid = torch.rand(mask.shape, generator=torch.Generator().manual_seed(3)) < 0.6
    features = model(images, mask, patch_valid=valid)["target_features"]
    for i in range(len(images)):
        tokens = model.target_encoder(images[i : i + 1], valid[i : i + 1])
        assert tokens.positions[0].tolist() == valid[i].nonzero().flatten().tolist()
        torch.testing.assert_close(features[i, valid[i]], tokens.features[0])
    assert (features[~valid] == 0).all()
