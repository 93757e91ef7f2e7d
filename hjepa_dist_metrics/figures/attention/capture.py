"""Attention weights of a model's forward pass, by any kernel.

Fused kernels never form the weights. While a capture runs, every attention goes its eager way: modules that
have one (timm, Hugging Face, nn.MultiheadAttention) are switched to it, and any other call of
`scaled_dot_product_attention` is computed from its query and key. Everything is as before afterwards.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hjepa_dist_metrics.errors import ConfigError

Forward = Callable[[nn.Module, Tensor], Any]

_MHA_ARGUMENTS = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")


class Recorder:
    """Keep the attention weights [B, heads, queries, keys] of the layers asked for, in calling order.

    `layers` counts attention computations from 0, negative from the end; None keeps all.
    """

    def __init__(self, layers: Sequence[int] | None) -> None:
        self.layers = None if layers is None else [int(layer) for layer in layers]
        last = 0 if self.layers is None else max([0, *(-layer for layer in self.layers)])
        self._tail: deque[tuple[int, str, Tensor]] = deque(maxlen=last)
        self._kept: dict[int, tuple[str, Tensor]] = {}
        self._newest: Tensor | None = None
        self.count = 0

    def record(self, name: str, weights: Tensor) -> None:
        """Take one computation's weights; a tensor that a parent module hands on is not a new one."""
        known = self._newest
        if known is not None and known.data_ptr() == weights.data_ptr() and known.shape == weights.shape:
            return
        self._newest = weights
        if self.layers is None or self.count in self.layers:
            self._kept[self.count] = (name, weights)
        if self._tail.maxlen:
            self._tail.append((self.count, name, weights))
        self.count += 1

    def maps(self) -> dict[str, Tensor]:
        """Return the weights by module name, in calling order; ConfigError for a layer that never came."""
        wanted = range(self.count) if self.layers is None else self.layers
        for layer in wanted:
            if not -self.count <= layer < self.count:
                raise ConfigError(f"the model computes {self.count} attention maps, got layer {layer}")
        numbers = sorted({layer % self.count for layer in wanted})
        kept = self._kept | {number: (name, weights) for number, name, weights in self._tail}
        named: dict[str, Tensor] = {}
        for number in numbers:
            name, weights = kept[number]
            named[_unused(name, named)] = weights
        return named


def extract_attention_maps(
    model: nn.Module, images: Tensor, layers: Sequence[int] | None = None, *, forward: Forward | None = None
) -> dict[str, Tensor]:
    """Return the attention weights of a forward pass over images [C, H, W] or [B, C, H, W].

    The result maps a module's name to its weights [B, heads, queries, keys], rows summing to 1, in the order
    of computation; `layers` picks some by number (negative from the end), and only those are kept. Of a model
    with a `target_encoder` that encoder is meant. `forward(model, images)` replaces the plain call.

    Works with nn.MultiheadAttention, with modules that call `scaled_dot_product_attention` or return
    `(output, weights)`, with timm's and with Hugging Face's. The weights are bit for bit those of the eager
    path. Model mode, hooks, flags and random state are restored. Raises ConfigError for a model without
    attention, and for images that the model does not take.
    """
    encoder = attention_model(model)
    batch = images if images.ndim == 4 else images[None]
    if batch.ndim != 4:
        raise ConfigError(f"expected images [C, H, W] or [B, C, H, W], got shape {list(images.shape)}")
    recorder = Recorder(layers)
    first = next((p for p in encoder.parameters() if p.is_floating_point()), None)
    if first is not None:
        batch = batch.to(first.device, first.dtype)
    with _watched(encoder, recorder):
        try:
            (forward or (lambda module, x: module(x)))(encoder, batch)
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise ConfigError(
                f"{type(encoder).__name__} does not take images of shape {list(batch.shape)}: {error}"
            ) from error
    if recorder.count == 0:
        raise ConfigError(
            f"found no attention in {type(encoder).__name__}: its forward pass calls neither "
            "nn.MultiheadAttention nor scaled_dot_product_attention, and no module returns attention weights"
        )
    return recorder.maps()


def attention_model(model: nn.Module) -> nn.Module:
    """Return the module to look into: unwrapped, and of a JEPA its target encoder."""
    while isinstance(inner := getattr(model, "_orig_mod", getattr(model, "module", None)), nn.Module):
        model = inner
    target = getattr(model, "target_encoder", None)
    return target if isinstance(target, nn.Module) else model


def eager_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return output and weights softmax(q k^T scale + mask), softmax in float32, of SDPA's arguments."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], dim=-3)
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(torch.float32, scores.dtype)).to(query.dtype)
    return weights @ value, weights


class _EagerSDPA(TorchFunctionMode):
    """Compute `scaled_dot_product_attention` in the open, under any name that a module imported it by."""

    def __init__(self, record: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._record = record

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        output, weights = eager_attention(*args, **(kwargs or {}))
        self._record(weights)
        return output


@contextmanager
def _watched(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Run the body with every attention of `model` eager and recorded, without gradients, in eval mode."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_eval_mode(model))
        stack.enter_context(_eager_kernels(model))
        stack.enter_context(torch.random.fork_rng(_cuda_devices(model)))
        running: list[str] = []
        for name, module in model.named_modules():
            for handle in _hooks(name or type(module).__name__, module, recorder, running):
                stack.callback(handle.remove)
        stack.enter_context(
            _EagerSDPA(lambda w: recorder.record(running[-1] if running else "sdpa", _four(w)))
        )
        yield


def _hooks(name: str, module: nn.Module, recorder: Recorder, running: list[str]) -> Iterator[Any]:
    """Register what tells where the pass is, and what reads weights that modules show."""

    def leave(_: nn.Module, args: Any, output: Any) -> None:
        for item in output[1:] if type(output) is tuple else ():
            if _is_weights(item):
                recorder.record(name, _four(item))

    yield module.register_forward_pre_hook(lambda *_: running.append(name))
    yield module.register_forward_hook(leave)
    yield module.register_forward_hook(lambda *_: _drop_last(running), always_call=True)
    if isinstance(module, nn.MultiheadAttention):
        yield module.register_forward_pre_hook(_ask_for_weights, with_kwargs=True)
    drop = getattr(module, "attn_drop", None)
    if isinstance(drop, nn.Module):
        yield drop.register_forward_pre_hook(
            lambda _, args: recorder.record(name, _four(args[0])) if _is_weights(args[0]) else None
        )


def _ask_for_weights(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
    named = dict(zip(_MHA_ARGUMENTS, args, strict=False)) | kwargs
    return (), named | {"need_weights": True, "average_attn_weights": False}


def _drop_last(running: list[str]) -> None:
    running.pop()


def _is_weights(item: Any) -> bool:
    """Return whether something is a tensor [.., heads, queries, keys] of floats whose rows sum to 1."""
    if not (isinstance(item, Tensor) and item.is_floating_point() and item.ndim in (3, 4) and item.numel()):
        return False
    sums = item.detach().float().sum(dim=-1)
    return bool((item >= 0).all() and ((sums - 1).abs() < 0.02).all())


def _four(weights: Tensor) -> Tensor:
    """Return weights as [B, heads, queries, keys]; three dimensions are one image's or one head's."""
    return weights if weights.ndim == 4 else weights[None]


def _unused(name: str, taken: dict[str, Tensor]) -> str:
    if name not in taken:
        return name
    again = 2
    while f"{name}#{again}" in taken:
        again += 1
    return f"{name}#{again}"


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _eager_kernels(model: nn.Module) -> Iterator[None]:
    """Switch modules that can choose their kernel to the eager one, and torch's fast paths off."""
    undo: list[tuple[Any, str, Any]] = []
    for module in model.modules():
        if getattr(module, "fused_attn", False) is True:  # timm
            undo.append((module, "fused_attn", True))
            module.fused_attn = False  # type: ignore[assignment]
        config: Any = getattr(module, "config", None)
        if getattr(config, "_attn_implementation", "eager") not in ("eager", None):  # Hugging Face
            undo.append((config, "_attn_implementation", config._attn_implementation))
            config._attn_implementation = "eager"
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for holder, attribute, value in reversed(undo):
            setattr(holder, attribute, value)


def _cuda_devices(model: nn.Module) -> list[int]:
    return sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
