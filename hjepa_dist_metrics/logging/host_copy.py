"""Bring tensors to the host without making the training thread wait for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hjepa_dist_metrics.metrics.base import as_value
from hjepa_dist_metrics.values import Scalar, Value, as_float


class HostCopy:
    """Hold a tensor's present content on its way to the host; later changes of the tensor do not show.

    On CUDA the copy is queued on the current stream, into pinned memory, and `wait` waits for it.
    """

    def __init__(self, tensor: Tensor) -> None:
        source = tensor.detach()
        self._copied: torch.cuda.Event | None = None
        if source.device.type != "cuda":
            self._host = source.to("cpu", copy=True)
            return
        self._host = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        self._host.copy_(source, non_blocking=True)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copied.record(torch.cuda.current_stream(source.device))

    def wait(self) -> Tensor:
        """Return the copy, a tensor on the host."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None
        return self._host


def whole(tensor: Tensor) -> Tensor:
    """Return a sharded tensor (DTensor) put together, a collective call for its ranks; others as they are."""
    gather = getattr(tensor, "full_tensor", None)
    full: Tensor = tensor if gather is None else gather()
    return full


def hold(value: Any) -> Callable[[], Any]:
    """Take what a tensor, an array or a sequence of them holds now; the result returns it when called."""
    if isinstance(value, Tensor):
        return HostCopy(value).wait
    if isinstance(value, (list, tuple)):
        parts = [hold(part) for part in value]
        return lambda: [part() for part in parts]
    kept = np.array(value)
    return lambda: kept


def size_of(value: Any) -> int:
    """Return about how many bytes `hold` keeps of a tensor, an array or a sequence of them."""
    if isinstance(value, (list, tuple)):
        return sum(map(size_of, value))
    return int(getattr(value, "nbytes", 0)) or int(np.size(value)) * 8


def scalars(tags: Iterable[str], numbers: Iterable[Any]) -> dict[str, Value]:
    """Return plain numbers as values by tag; an integer beyond every float is infinite."""
    return {tag: Scalar(as_float(number)) for tag, number in zip(tags, numbers, strict=True)}


def take_numbers(numbers: Mapping[str, Any]) -> Callable[[], dict[str, Value]]:
    """Take numbers, tensors of one element and values now; the result makes values of them when called.

    All tensors of a CUDA device come in one copy.
    """
    taken: dict[str, Any] = {}
    on_device: dict[torch.device, dict[str, Tensor]] = {}
    for tag, value in numbers.items():
        if isinstance(value, Tensor) and value.device.type == "cuda":
            on_device.setdefault(value.device, {})[tag] = value.detach().reshape(())
        else:
            taken[tag] = value.detach().item() if isinstance(value, Tensor) else value
    copies = [
        (list(tensors), HostCopy(torch.stack([tensor.double() for tensor in tensors.values()])))
        for tensors in on_device.values()
    ]

    def finish() -> dict[str, Value]:
        ready = dict(taken)
        for tags, copy in copies:
            ready.update(zip(tags, copy.wait().tolist(), strict=True))
        return {tag: _value(ready[tag]) for tag in numbers}

    return finish


def _value(number: Any) -> Value:
    if isinstance(number, (float, int)):
        return Scalar(as_float(number))
    return as_value(number)
