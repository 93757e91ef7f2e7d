"""Attention of every kind against direct computation; planted sinks are found where they are."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from hjepa_dist_metrics import AttentionStatistics, ConfigError
from hjepa_dist_metrics.figures import extract_attention_maps
from hjepa_dist_metrics.metrics.kernels import heads as kernel
from hjepa_dist_metrics.reference.hjepa.encoder import VisionEncoder
from tests.figures.attention.test_capture import hugging_face
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

IMAGES = torch.stack([image(0), image(1), image(2)])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def direct(weights):
    """Return entropy, relative entropy and sink by head of weights [B, heads, N, M], all keys visible."""
    w = weights.double().numpy()
    entropy = -(w * np.log(np.maximum(w, 1e-300))).sum(-1)
    shares = w.mean(2)
    keys = [np.bincount(k, minlength=w.shape[-1]).argmax() for k in shares.argmax(-1).T]
    return entropy.mean((0, 2)), entropy.mean((0, 2)) / math.log(w.shape[-1]), shares.max(-1).mean(0), keys


def assert_right(metric, maps):
    heads = metric.head_numbers(metric.states)
    assert len(heads) == sum(weights.shape[1] for weights in maps.values())
    by_place = {(head.layer, head.head): head for head in heads}
    for layer, weights in maps.items():
        for number, (entropy, relative, sink, key) in enumerate(zip(*direct(weights), strict=True)):
            head = by_place[layer, number]
            assert head.entropy == pytest.approx(entropy, rel=1e-5)
            assert head.relative_entropy == pytest.approx(relative, rel=1e-5)
            assert head.sink == pytest.approx(sink, rel=1e-5)
            assert head.sink_key == key


def eager_timm():
    with timm_attention() as attention:
        return [attention(24, num_heads=3, qkv_bias=True) for _ in range(2)]


MODELS = {
    "reference": lambda: VisionEncoder(GRID, 8, 3, 24, 2, 3, 2.0),
    "nn.MultiheadAttention": lambda: PatchViT([SelfMHA(), SelfMHA()]),
    "nn.TransformerEncoder": lambda: PatchViT([encoder_layers()]),
    "eager": lambda: PatchViT([DinoAttention(), DinoAttention()]),
    "fused": lambda: PatchViT([FusedOrNot(), FusedOrNot()]),
    "timm": lambda: PatchViT(eager_timm()),
}


def plain(output):
    return getattr(output, "features", output)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", MODELS)
def test_heads_of_every_kind_of_attention(kind):
    model = MODELS[kind]()
    for module in model.modules():  # so that passes are the same
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    metric = AttentionStatistics(model)
    without = plain(model(IMAGES))
    with metric.watching():
        watched = plain(model(IMAGES))
    assert torch.equal(without, watched)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert_right(metric, extract_attention_maps(model, IMAGES))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_heads_of_hugging_face(implementation):
    model = hugging_face("ViT", (32, 48), implementation)
    metric = AttentionStatistics(model)
    with metric.watching():
        model(IMAGES)
    maps = extract_attention_maps(model, IMAGES)
    found = metric.head_numbers(metric.states)
    assert len({head.layer for head in found}) == len(maps) == 2
    renamed = dict(zip(dict.fromkeys(head.layer for head in found), maps.values(), strict=True))
    assert_right(metric, renamed)


def qkv(heads=4, key_heads=4, queries=33, keys=33, batch=3, width=8):
    return (
        torch.randn(batch, heads, queries, width) * 2,
        torch.randn(batch, key_heads, keys, width),
        torch.randn(batch, key_heads, keys, width),
    )


def float_mask(queries, keys):
    mask = torch.zeros(queries, keys)
    mask[:, 3] = torch.finfo(torch.float32).min
    mask[:, 5] = float("-inf")
    return mask


MASKS = {
    "none": dict,
    "causal": lambda: {"is_causal": True},
    "bool": lambda: {"attn_mask": torch.rand(3, 1, 33, 33) < 0.4},
    "float": lambda: {"attn_mask": float_mask(33, 33)},
    "scale": lambda: {"scale": 0.5},
}


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, **self.options)


@pytest.mark.parametrize("rows", [1 << 21, 4 * 33 * 7, 1])
@pytest.mark.parametrize("kind", MASKS)
def test_masks_scales_and_blocks_of_queries(monkeypatch, kind, rows):
    monkeypatch.setattr(kernel, "_BLOCK_ELEMENTS", rows)
    (q, k, v), options = qkv(), MASKS[kind]()
    model = Attention(**options)
    metric = AttentionStatistics(model)
    with metric.watching():
        model(q, k, v)
    scores = (q @ k.transpose(-2, -1)).double().numpy() * (options.get("scale") or 8**-0.5)
    visible = np.ones_like(scores, dtype=bool)
    if kind == "causal":
        visible &= np.tril(np.ones((33, 33), dtype=bool))
    if kind == "bool":
        visible &= options["attn_mask"].numpy()
    if kind == "float":
        visible[..., [3, 5]] = False
    shown = np.where(visible, scores, -np.inf)
    seen = visible.any(-1)
    with np.errstate(invalid="ignore"):
        weights = np.exp(shown - shown.max(-1, keepdims=True))
        weights = np.where(seen[..., None], weights / weights.sum(-1, keepdims=True), 0.0)
    entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(-1)
    several = visible.sum(-1) > 1
    for head in metric.head_numbers(metric.states):
        i = head.head
        assert head.logit == pytest.approx(shown[:, i].max(), rel=1e-5)
        assert head.entropy == pytest.approx(entropy[:, i][seen[:, i]].mean(), rel=1e-5)
        relative = (entropy / np.log(np.maximum(visible.sum(-1), 2)))[:, i][several[:, i]].mean()
        assert head.relative_entropy == pytest.approx(relative, rel=1e-5)
        shares = weights[:, i].sum(1) / seen[:, i].sum(-1, keepdims=True)
        assert head.sink == pytest.approx(shares.max(-1).mean(), rel=1e-5)


class LargestTensor(TorchDispatchMode):
    """Remember the most elements of any new tensor."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not func.is_view:
            self.elements = max(self.elements, result.untyped_storage().nbytes() // result.element_size())
        return result


def test_memory_stays_bounded():
    """Weights of 4 x 2 x 1500 x 1500 would be 18 million numbers."""
    q, k = torch.randn(4, 2, 1500, 4), torch.randn(4, 2, 1500, 4)
    metric = AttentionStatistics(nn.Linear(1, 1))
    with LargestTensor() as largest:
        metric.update(q, k, causal=True)
    assert q.numel() <= largest.elements <= kernel._BLOCK_ELEMENTS


def test_fewer_key_heads_are_shared():
    q, k, _ = qkv(key_heads=2)
    shared, whole = AttentionStatistics(nn.Linear(1, 1)), AttentionStatistics(nn.Linear(1, 1))
    shared.update(q, k)
    whole.update(q, k.repeat_interleave(2, dim=1))
    assert shared.head_numbers(shared.states) == whole.head_numbers(whole.states)


MULTIHEAD = {
    "padding": {"key_padding_mask": torch.arange(9).expand(2, 9) > 5},
    "float pairs": {"attn_mask": torch.randn(7, 9)},
    "pairs of heads": {"attn_mask": torch.rand(2 * 3, 7, 9) < 0.3},
}


@pytest.mark.parametrize(
    "options", [{}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 5, "vdim": 5}]
)
@pytest.mark.parametrize("masks", MULTIHEAD)
def test_multihead_attention_of_every_make(options, masks):
    attention = nn.MultiheadAttention(12, 3, batch_first=True, **options)
    q, k = torch.randn(2, 7, 12), torch.randn(2, 9, options.get("kdim", 12))
    metric = AttentionStatistics(attention)
    with metric.watching():
        attention(q, k, k, need_weights=False, **MULTIHEAD[masks])
    weights = attention(q, k, k, need_weights=True, average_attn_weights=False, **MULTIHEAD[masks])[1]
    for head in metric.head_numbers(metric.states):
        assert head.layer == "MultiheadAttention"
        entropy, _, sink, _ = direct(weights.detach())
        assert head.entropy == pytest.approx(entropy[head.head], rel=1e-4)
        assert head.sink == pytest.approx(sink[head.head], rel=1e-4)


def test_weights_of_half_precision_are_computed_in_float32():
    q, k, _ = (tensor.bfloat16() for tensor in qkv())
    half, exact = AttentionStatistics(nn.Linear(1, 1)), AttentionStatistics(nn.Linear(1, 1))
    with torch.autocast("cpu", torch.bfloat16):
        half.update(q, k)
    exact.update(q.double(), k.double())
    for one, other in zip(half.head_numbers(half.states), exact.head_numbers(exact.states), strict=True):
        assert one.entropy == pytest.approx(other.entropy, rel=1e-5)


def test_planted_sinks_are_found_where_they_are():
    torch.manual_seed(1)
    metric = AttentionStatistics(nn.Linear(1, 1))
    for layer in range(4):
        q, k = torch.randn(5, 6, 40, 8), torch.randn(5, 6, 40, 8)
        if layer == 2:
            k[:, 3, 17] = 6 * q[:, 3].mean(dim=1) / q[:, 3].mean(dim=1).norm(dim=-1, keepdim=True)
            q[:, 3] += (
                3
                * q[:, 3].mean(dim=1, keepdim=True)
                / q[:, 3].mean(dim=1, keepdim=True).norm(dim=-1, keepdim=True)
            )
        metric.update(q, k, layer=f"blocks.{layer}.attn")
    found = metric.compute()
    assert found["attention/strongest_sink"].markdown.startswith("`blocks.2.attn`, head 3, key 17: ")
    assert found["attention/sink_max"] > 0.8 > 3 * found["attention/sink_median"]


def test_sharp_heads_and_large_logits_are_found_where_they_are():
    metric = AttentionStatistics(nn.Linear(1, 1), per_layer=True)
    for layer in range(3):
        q, k, _ = qkv()
        if layer == 1:
            q[:, 2] *= 300
        metric.update(q, k, layer=f"{layer}")
    found = metric.compute()
    assert found["attention/largest_logit"].markdown.startswith("`1`, head 2: ")
    assert found["attention/lowest_entropy"].markdown.startswith("`1`, head 2: ")
    assert found["attention/1_logit"] == found["attention/logit_max"]
    assert found["attention/relative_entropy"].count == 12


def test_keys_after_the_first_256_share_a_place():
    q, k = torch.randn(1, 1, 4, 8), torch.randn(1, 1, 300, 8)
    k[:, :, 290] = 20 * q.mean(dim=2)
    metric = AttentionStatistics(nn.Linear(1, 1))
    metric.update(q, k)
    assert "a key from number 256 on" in metric.compute()["attention/strongest_sink"].markdown


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.attn = FusedOrNot()
        self.reentrant = reentrant

    def forward(self, x):
        return checkpoint(self.attn, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
def test_the_second_forward_of_activation_checkpointing_does_not_count(reentrant):
    model, x = Checkpointed(reentrant), torch.randn(2, 5, 24, requires_grad=True)
    metric = AttentionStatistics(model)
    with metric.watching():
        model(x).sum().backward()
    ((_, sums),) = metric.heads.items()
    assert set(sums.data[0].tolist()) == {10.0}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_compiled_model_is_looked_at():
    model = PatchViT([FusedOrNot(), FusedOrNot()])
    compiled = torch.compile(model, backend="eager")
    compiled(IMAGES)
    metric = AttentionStatistics(compiled)
    with metric.watching():
        compiled(IMAGES)
    assert_right(metric, extract_attention_maps(model, IMAGES))
    torch.compiler.reset()


def test_other_softmaxes_are_not_attention():
    model = nn.Sequential(nn.Linear(4, 4), nn.Softmax(dim=-1))
    metric = AttentionStatistics(model)
    with metric.watching():
        model(torch.randn(2, 3, 4, 4))
    assert metric.compute() == {}


def test_what_failed_is_taken_back():
    model = PatchViT([SelfMHA()])
    metric = AttentionStatistics(model)
    with pytest.raises(RuntimeError), metric.watching():
        model(torch.zeros(1, 4, 32, 48))
    assert torch.backends.mha.get_fastpath_enabled()
    assert not torch.overrides._get_current_function_mode_stack()
    with metric.watching():
        model(IMAGES)
    assert metric.compute()


def test_bad_input_is_told():
    metric = AttentionStatistics(nn.Linear(1, 1))
    with pytest.raises(
        ConfigError, match=r"expected query \[B, heads, N, d\] and key .* \[2, 3, 4, 5\] and \[2, 3, 4, 6\]"
    ):
        metric.update(torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 6))
    with pytest.raises(ConfigError, match="query must be a floating-point tensor"):
        metric.update(torch.zeros(2, 3, 4, 5, dtype=torch.int64), torch.zeros(2, 3, 4, 5))
