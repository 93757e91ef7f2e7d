"""Where a model attends: calls of attention in its own forward pass, which stays as it is.

Fused kernels show their queries and keys, eager code the scores that it hands to softmax.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hjepa_dist_metrics.metrics.internals.hooks import is_repeated_or_compiled
from hjepa_dist_metrics.metrics.kernels.heads import Scores, ready_scores, scores_of
from hjepa_dist_metrics.parallel.module_names import named_modules
from hjepa_dist_metrics.parallel.sharding.placement import is_dtensor, local_piece

# Takes the name of the module that attends, and its scores.
Record = Callable[[str, Scores], None]

_SOFTMAX = (F.softmax, torch.softmax, torch.Tensor.softmax)
_MHA = inspect.signature(F.multi_head_attention_forward)


class AttentionCalls:
    """Watch the attention of a model's modules: hooks tell which module runs, a mode sees what it calls."""

    def __init__(self, model: nn.Module, record: Record) -> None:
        self._model, self._record = model, record
        self._running: list[tuple[str, nn.Module]] = []
        self._mode: _SeeAttention | None = None

    def hooks(self) -> Iterator[Any]:
        """Add the hooks and yield their handles; the last is not a hook's, and turns fast paths on again."""
        for name, module in named_modules(self._model).items():
            shown = name or type(module).__name__
            yield module.register_forward_pre_hook(lambda called, _, shown=shown: self._enter(shown, called))
            yield module.register_forward_hook(lambda *_: self._leave(), always_call=True)
        yield _FastPath()

    def _enter(self, name: str, module: nn.Module) -> None:
        if is_repeated_or_compiled():
            return
        self._running.append((name, module))
        if self._mode is None:
            self._mode = _SeeAttention(self._see)
            self._mode.__enter__()  # type: ignore[no-untyped-call]

    def _leave(self) -> None:
        if is_repeated_or_compiled() or not self._running:
            return
        self._running.pop()
        if not self._running and self._mode is not None:
            mode, self._mode = self._mode, None
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def _see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name, module = self._running[-1]
        with torch.no_grad():
            if func is F.scaled_dot_product_attention:
                scores = _of_sdpa(*args, **kwargs)
            elif func is F.multi_head_attention_forward:
                scores = _of_multihead(args, kwargs)
            else:
                scores = _of_softmax(module, any(_attends(*part) for part in self._running), args, kwargs)
        if scores is not None:
            self._record(name, scores)


class _SeeAttention(TorchFunctionMode):
    """Show calls that attend, before they are made, and leave them as they are."""

    def __init__(self, see: Callable[[Any, tuple[Any, ...], dict[str, Any]], None]) -> None:
        super().__init__()
        self._see = see

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _SEEN:
            self._see(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


_SEEN = {F.scaled_dot_product_attention, F.multi_head_attention_forward, *_SOFTMAX}


class _FastPath:
    """Keep torch's own transformer modules off the kernel that shows nothing, until `remove`."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._stack.callback(
            torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()
        )
        torch.backends.mha.set_fastpath_enabled(False)

    def remove(self) -> None:
        """Turn it on again, where it was on."""
        self._stack.close()


def _of_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Scores | None:
    parts = [_local(tensor) for tensor in (query, key)]
    return scores_of(parts[0], parts[1], None if attn_mask is None else _local(attn_mask), is_causal, scale)


def _of_multihead(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Scores | None:
    """Return the scores of nn.MultiheadAttention, from its inputs and the weights of its projections."""
    given = _MHA.bind(*args, **kwargs)
    given.apply_defaults()
    call = given.arguments
    query, key = _projected(call)
    heads, (targets, batch, dim) = call["num_heads"], query.shape
    width = dim // heads
    keys = [part for part in (key, call["bias_k"]) if part is not None]
    key = keys[0] if len(keys) == 1 else torch.cat([key, keys[1].expand(-1, batch, -1)])
    if call["static_k"] is not None:
        key = call["static_k"].reshape(batch, heads, -1, width)
    else:
        key = key.reshape(-1, batch, heads, width).permute(1, 2, 0, 3)
    if call["add_zero_attn"]:
        key = torch.cat([key, key.new_zeros(batch, heads, 1, width)], dim=2)
    split = query.reshape(targets, batch, heads, width).permute(1, 2, 0, 3)
    return scores_of(
        split, key, _merged_mask(call, batch, heads, targets, key.shape[2]), call_is_causal(call)
    )


def call_is_causal(call: dict[str, Any]) -> bool:
    """Return whether a call hides later keys without a mask that says so."""
    return bool(call["is_causal"]) and call["attn_mask"] is None


def _projected(call: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return queries [N, B, D] and keys [M, B, D] as the call's projections make them."""
    query, key = call["query"], call["key"]
    if query.ndim == 2:
        query, key = query[:, None], key[:, None]
    biases: Any = (None, None) if call["in_proj_bias"] is None else call["in_proj_bias"].chunk(3)[:2]
    weights = (
        (call["q_proj_weight"], call["k_proj_weight"])
        if call["use_separate_proj_weight"]
        else call["in_proj_weight"].chunk(3)[:2]
    )
    return F.linear(query, weights[0], biases[0]), F.linear(key, weights[1], biases[1])


def _merged_mask(call: dict[str, Any], batch: int, heads: int, targets: int, keys: int) -> Tensor | None:
    """Return the additive mask of a call [B, heads, N, M] from those of keys and pairs; None without any."""
    total: Tensor | None = None
    padding, pairs = call["key_padding_mask"], call["attn_mask"]
    if padding is not None:
        total = _additive(padding).reshape(batch, 1, 1, -1)
    if pairs is not None:
        pair = _additive(pairs)
        pair = pair.reshape(batch, heads, *pair.shape[1:]) if pair.ndim == 3 and len(pair) > 1 else pair
        total = pair if total is None else total + pair
    if total is None:
        return None
    # What the call adds to the keys itself, a bias or a zero, is seen by all.
    total = F.pad(total, (0, keys - total.shape[-1]))
    return total.expand(batch, heads, targets, keys)


def _additive(mask: Tensor) -> Tensor:
    """Return a mask, of which True hides, as numbers to add."""
    if mask.dtype != torch.bool:
        return mask.float()
    return torch.zeros(mask.shape, device=mask.device).masked_fill(mask, float("-inf"))


def _of_softmax(
    module: nn.Module, attends: bool, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Scores | None:
    """Return the scores that eager attention hands to softmax; None for any other softmax."""
    scores = args[0] if args else kwargs.get("input")
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if not isinstance(scores, Tensor) or not scores.is_floating_point() or not attends:
        return None
    if scores.ndim not in (3, 4) or dim not in (-1, scores.ndim - 1) or not scores.numel():
        return None
    scores = _local(scores)
    return ready_scores(scores, scores.shape[1] if scores.ndim == 4 else _heads(module, len(scores)))


def _attends(name: str, module: nn.Module) -> bool:
    """Return whether a module goes by a name of attention, its own or its class's."""
    words = f"{name.rpartition('.')[2]} {type(module).__name__}".lower()
    return "attn" in words or "attention" in words


def _heads(module: nn.Module, rows: int) -> int:
    """Return the heads of scores [rows, N, M]: those that the module says it has, where they fit."""
    for attribute in ("num_heads", "num_attention_heads", "heads", "n_heads", "n_head"):
        number = getattr(module, attribute, None)
        if isinstance(number, int) and number > 0 and rows % number == 0:
            return number
    return 1


def _local(tensor: Tensor) -> Tensor:
    return local_piece(tensor.detach()) if is_dtensor(tensor) else tensor
