"""The device that the tests of this folder run on: the first GPU, or the host in a rehearsal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

REHEARSAL = "HJEPA_CUDA_REHEARSAL"


def rehearsed() -> bool:
    return os.environ.get(REHEARSAL) == "1"


def has_gpu() -> bool:
    return rehearsed() or torch.cuda.is_available()


def device() -> torch.device:
    return torch.device("cpu") if rehearsed() else torch.device("cuda", 0)


def backend() -> str:
    """Return the backend of a group of one rank on the device."""
    return "gloo" if rehearsed() else "nccl"


def compiled(module: nn.Module) -> nn.Module:
    """Compile as users do; the host's rehearsal needs no C++ compiler."""
    made: Any = torch.compile(module, backend="eager" if rehearsed() else "inductor")
    return made


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """Let torch raise RuntimeError wherever the host would wait for the device, on any thread."""
    if rehearsed():
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def wait_for_device() -> None:
    if not rehearsed():
        torch.cuda.synchronize()


def keep_busy(cycles: int = 50_000_000) -> None:
    """Queue work of about 30 ms on the current stream, so that what comes after it is not done at once."""
    if not rehearsed():
        torch.cuda._sleep(cycles)


def side_stream() -> AbstractContextManager[Any]:
    """Return a context whose work is queued on a stream that is not the default one."""
    return nullcontext() if rehearsed() else torch.cuda.stream(torch.cuda.Stream())


def allocated() -> int:
    """Return the bytes that torch holds on the device."""
    wait_for_device()
    return 0 if rehearsed() else torch.cuda.memory_allocated(device())


def there(tree: Any, dtype: torch.dtype | None = None, where: torch.device | None = None) -> Any:
    """Return a tree with its tensors and modules on the device; floating-point tensors get `dtype`."""
    place = where or device()

    def move(leaf: Any) -> Any:
        if isinstance(leaf, nn.Module):
            return leaf.to(place, dtype)
        if isinstance(leaf, Tensor):
            return leaf.to(place, dtype if leaf.is_floating_point() else None)
        return leaf

    return tree_map(move, tree)
