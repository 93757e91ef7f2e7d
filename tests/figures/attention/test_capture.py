"""Captured weights are the eager path's, bit for bit, for every kind of attention; nothing stays changed."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.figures import extract_attention_maps
from hjepa_dist_metrics.reference.hjepa import ModelConfig
from hjepa_dist_metrics.reference.hjepa.encoder import VisionEncoder
from hjepa_dist_metrics.reference.hjepa.model import HJEPA
from tests.helpers.models import (
    GRID,
    DinoAttention,
    FusedOrNot,
    PatchViT,
    SelfMHA,
    encoder_layers,
    image,
    timm_attention,
)

TOKENS = GRID[0] * GRID[1]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def equal(maps: dict[str, torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(maps) == len(expected)
    for (name, found), wanted in zip(maps.items(), expected, strict=True):
        assert torch.equal(found, wanted), name


def test_multihead_attention_is_its_own_eager_path():
    model = PatchViT([SelfMHA(), SelfMHA()]).eval()
    wanted = []
    with torch.no_grad():
        x = model.proj(image()[None]).flatten(2).transpose(1, 2)
        x = torch.cat([model.prefix.expand(1, -1, -1), x], dim=1)
        for block in model.blocks:
            out, weights = block.attn(x, x, x, need_weights=True, average_attn_weights=False)
            wanted.append(weights)
            x = x + out
    equal(extract_attention_maps(model, image()), wanted)
    assert list(extract_attention_maps(model, image())) == ["blocks.0.attn", "blocks.1.attn"]


def test_the_native_fast_path_hides_nothing():
    encoder = PatchViT([encoder_layers()]).eval()
    with torch.no_grad():
        maps = extract_attention_maps(encoder, image())
    assert list(maps) == ["blocks.0.layers.0.self_attn", "blocks.0.layers.1.self_attn"]
    first = encoder.blocks[0].layers[0]
    with torch.no_grad():
        x = encoder.proj(image()[None]).flatten(2).transpose(1, 2)
        x = first.norm1(torch.cat([encoder.prefix.expand(1, -1, -1), x], dim=1))
        wanted = first.self_attn(x, x, x, need_weights=True, average_attn_weights=False)[1]
    assert torch.equal(maps["blocks.0.layers.0.self_attn"], wanted)
    assert torch.backends.mha.get_fastpath_enabled()


def test_weights_that_a_module_returns_count_once():
    model = PatchViT([DinoAttention(), DinoAttention()]).eval()
    with torch.no_grad():
        x = torch.cat([model.prefix[None], model.proj(image()[None]).flatten(2).transpose(1, 2)], dim=1)
        out, first = model.blocks[0](x)
        second = model.blocks[1](x + out)[1]
    equal(extract_attention_maps(model, image()), [first, second])


def fused_gives_what_unfused_computes(model: nn.Module) -> None:
    assert all(block.fused_attn for block in model.blocks)
    found = extract_attention_maps(model, image())
    assert all(block.fused_attn for block in model.blocks)
    seen: list[torch.Tensor] = []
    for block in model.blocks:
        block.fused_attn = False
        block.attn_drop.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    with torch.no_grad():
        model(image()[None])
    equal(found, seen)


def test_modules_that_choose_their_kernel_go_their_eager_way():
    fused_gives_what_unfused_computes(PatchViT([FusedOrNot() for _ in range(3)]).eval())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_timm_fused_gives_what_timm_unfused_computes():
    with timm_attention() as attention:
        model = PatchViT(
            [
                attention(24, num_heads=3, qkv_bias=True, qk_norm=True, norm_layer=nn.LayerNorm)
                for _ in range(3)
            ]
        ).eval()
        fused_gives_what_unfused_computes(model)


def hugging_face(kind: str, size: tuple[int, int], implementation: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
    config = getattr(transformers, f"{kind}Config")(
        **shape,
        image_size=list(size) if size[0] != size[1] else size[0],
        patch_size=8,
        attn_implementation=implementation,
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}Model")(config).eval()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("kind", "prefix", "size"),
    [
        ("ViT", 1, (32, 48)),
        ("IJepa", 0, (32, 48)),
        ("Dinov2", 1, (32, 32)),
        ("Dinov2WithRegisters", 5, (32, 32)),
    ],
)
def test_hugging_face_sdpa_gives_what_its_eager_path_computes(kind: str, prefix: int, size: tuple[int, int]):
    model = hugging_face(kind, size, "sdpa")
    assert model.config._attn_implementation == "sdpa"
    maps = extract_attention_maps(model, image(size=size))
    assert model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        eager = hugging_face(kind, size, "eager")(image(size=size)[None], output_attentions=True)
    equal(maps, list(eager.attentions))
    tokens = prefix + size[0] * size[1] // 64
    assert maps.popitem()[1].shape == (1, 3, tokens, tokens)


def test_the_reference_encoder_by_hand():
    encoder = VisionEncoder(GRID, 8, 3, 24, 2, 3, 2.0).eval()
    maps = extract_attention_maps(encoder, torch.stack([image(0), image(1)]))
    assert list(maps) == ["blocks.0.attn", "blocks.1.attn"]
    with torch.no_grad():
        x = encoder.patch_embed(torch.stack([image(0), image(1)])) + encoder.pos_embed
        attn = encoder.blocks[0].attn
        q, k, _ = attn.qkv(encoder.blocks[0].norm1(x)).view(2, TOKENS, 3, 3, 8).permute(2, 0, 3, 1, 4)
        wanted = (q @ k.transpose(-2, -1) * 8**-0.5).softmax(dim=-1)
    assert torch.equal(maps["blocks.0.attn"], wanted)


def test_a_jepa_is_its_target_encoder():
    model = HJEPA(ModelConfig(embed_dim=24, predictor_dim=24, num_heads=3, mlp_ratio=1.0), (32, 48), 3)
    maps = extract_attention_maps(model, image())
    assert next(iter(maps.values())).shape[-1] == model.get_num_patches()


class Masked(nn.Module):
    """Calls the function by another name, with causal and additive masks, as other libraries do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attend = F.scaled_dot_product_attention
        tokens = x.flatten(2)
        bias = torch.zeros(tokens.shape[1], tokens.shape[1])
        bias[:, 0] = float("-inf")
        first = attend(tokens[:, None], tokens[:, None], tokens[:, None], is_causal=True)
        return attend(first, first, first, attn_mask=bias, scale=0.5)


def test_masks_and_scale_are_heeded():
    maps = extract_attention_maps(Masked(), image(size=(4, 4)))
    causal, masked = maps["Masked"], maps["Masked#2"]
    assert torch.equal(causal, causal.tril())
    assert (masked[..., 0] == 0).all()
    torch.testing.assert_close(masked.sum(dim=-1), torch.ones_like(masked[..., 0]))


def test_outputs_stay_what_the_fused_kernel_gives():
    encoder = VisionEncoder(GRID, 8, 3, 24, 2, 3, 2.0).eval()
    outputs = []
    extract_attention_maps(encoder, image(), forward=lambda m, x: outputs.append(m(x).features))
    torch.testing.assert_close(outputs[0], encoder(image()[None]).features, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("layers", "kept"), [([1], ["blocks.1.attn"]), ([-1, 0], ["blocks.0.attn", "blocks.2.attn"])]
)
def test_only_the_layers_asked_for_come(layers: list[int], kept: list[str]):
    model = PatchViT([SelfMHA() for _ in range(3)]).eval()
    everything = extract_attention_maps(model, image())
    some = extract_attention_maps(model, image(), layers)
    assert list(some) == kept
    assert all(torch.equal(some[name], everything[name]) for name in kept)


def test_only_the_layers_asked_for_are_kept_in_memory():
    """Each map's storage is watched: of 6 layers only the asked one lives on after the next is computed."""
    import weakref

    alive: list[weakref.ref] = []
    most = 0

    class TrackedParameters(SelfMHA):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            nonlocal most
            out, weights = self.attn(x, x, x)
            alive.append(weakref.ref(weights))
            most = max(most, sum(ref() is not None for ref in alive))
            return out

    extract_attention_maps(PatchViT([TrackedParameters() for _ in range(6)]), image(), [1])
    assert most <= 3  # the one asked for, the newest, and the one under way


def test_everything_is_restored():
    model = PatchViT([SelfMHA(), nn.Sequential(nn.Dropout(0.5), SelfMHA())])
    model.train()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    random, weights = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    for layers in (None, [7]):
        with pytest.raises(ConfigError) if layers else nullcontext():
            extract_attention_maps(model, image(), layers)
        assert [module.training for module in model.modules()] == modes
        assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == hooks
        assert torch.equal(torch.get_rng_state(), random)
        assert all(
            torch.equal(a, b) for a, b in zip(weights.values(), model.state_dict().values(), strict=True)
        )
        assert all(p.grad is None for p in model.parameters())


def test_bad_models_images_and_layers_are_told():
    with pytest.raises(ConfigError, match="found no attention in Sequential"):
        extract_attention_maps(nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.ReLU()), image())
    model = PatchViT([SelfMHA()])
    with pytest.raises(
        ConfigError, match=r"expected images \[C, H, W\] or \[B, C, H, W\], got shape \[3, 4\]"
    ):
        extract_attention_maps(model, torch.zeros(3, 4))
    with pytest.raises(ConfigError, match=r"PatchViT does not take images of shape \[1, 1, 32, 48\]"):
        extract_attention_maps(model, image()[:1])
    with pytest.raises(ConfigError, match=r"computes 1 attention maps, got layer 3"):
        extract_attention_maps(model, image(), [3])
    encoder = VisionEncoder(GRID, 8, 3, 24, 2, 3, 2.0)
    with pytest.raises(ConfigError, match=r"VisionEncoder does not take images of shape \[1, 3, 32, 32\]"):
        extract_attention_maps(encoder, image(size=(32, 32)))
