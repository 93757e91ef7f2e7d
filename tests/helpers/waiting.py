"""Find waits for the device without one: run code on tensors that have no values, and watch each operation.

A tensor of the "meta" device stands for one of a GPU: what reads its value to the host raises. The watches
add what would wait on CUDA and does not raise by itself: copies between host and device that block, building
a tensor from numbers on the device, operations whose result's shape depends on values, and indices that come
from the host. It is what `torch.cuda.set_sync_debug_mode("error")` finds on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

DEVICE = torch.device("meta")

READS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "allclose"}
SHAPES = {
    "bincount",
    "masked_select",
    "nonzero",
    "nonzero_static",
    "repeat_interleave",
    "unique_consecutive",
    "unique_dim",
    "_unique",
    "_unique2",
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
MAKERS = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
COPIES = {"_to_copy", "copy_", "_copy_from"}


class WaitsForDevice(AssertionError):
    """An operation that would make the host wait for the device."""


def on_device(tree: Any) -> Any:
    """Return tensors and modules of a tree on the device that stands for a GPU."""

    def move(leaf: Any) -> Any:
        return leaf.to(DEVICE) if isinstance(leaf, (Tensor, nn.Module)) else leaf

    return tree_map(move, tree)


class _Watch(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        reason = _wait(func.overloadpacket.__name__, args, given)
        if reason:
            raise WaitsForDevice(f"{func}: {reason}")
        return func(*args, **given)


class _WatchCalls(TorchFunctionMode):
    """See what is done before an operation is dispatched: numbers become tensors of the device."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **dict(kwargs or {}))
        made = isinstance(result, Tensor) and result.device == DEVICE and func in MAKERS
        if made and not isinstance(args[0 if func is not Tensor.new_tensor else 1], Tensor):
            raise WaitsForDevice(f"{func.__name__}: copies numbers to the device, and waits")
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].device == DEVICE:
            indices = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(index, (list, np.ndarray)) for index in indices):
                raise WaitsForDevice(f"{func.__name__}: indexes by numbers of the host")
        return result


def _wait(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    there = any(isinstance(leaf, Tensor) and leaf.device == DEVICE for leaf in tree_iter((args, kwargs)))
    if there and name in READS:
        return "reads a value"
    if there and name in SHAPES:
        return "asks for values to know a shape"
    if name in COPIES and _crosses(args, kwargs):
        if not _asynchronous(name, args, kwargs):
            return "copies between host and device, and waits"
        if _target(args, kwargs) != DEVICE:
            return "copies to the host, and does not wait: what is read there may be anything"
    if name in INDEXING and args[0].device == DEVICE:
        indices = [index for index in args[1] if index is not None]
        if any(index.dtype == torch.bool for index in indices):
            return "indexes by a mask"
        if any(index.device != DEVICE and index.ndim for index in indices):
            return "indexes by numbers of the host"
    return None


def _crosses(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    source = args[1] if len(args) > 1 and isinstance(args[1], Tensor) else args[0]
    return (source.device == DEVICE) != (_target(args, kwargs) == DEVICE)


def _target(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.device:
    copied_into = len(args) > 1 and isinstance(args[1], Tensor)
    return args[0].device if copied_into else torch.device(kwargs.get("device") or args[0].device)


def _asynchronous(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return bool(kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raise WaitsForDevice, or what the meta device raises by itself, where the body would wait."""
    with _WatchCalls(), _Watch():
        yield
