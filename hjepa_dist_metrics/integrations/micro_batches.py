"""The micro-batches of an optimizer step, put together for `TrainingMonitor.step`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


class MicroBatches:
    """Add up samples and tokens of micro-batches and average their losses, without a wait for the device.

        batches = MicroBatches()
        for images in micro_batches:
            ...
            batches.add(loss, samples=len(images))
        monitor.step(**batches.take())

    A loss is the mean over `count` samples or tokens, `samples` by default; the average weights by it.
    """

    def __init__(self) -> None:
        self._samples = 0
        self._tokens = 0
        self._losses: list[tuple[Mapping[str, Any], Any]] = []

    def __bool__(self) -> bool:
        return bool(self._losses) or self._samples > 0

    def add(self, losses: Any, samples: int, *, count: Any = None, tokens: int = 0) -> None:
        """Add a micro-batch: one loss, or several by name with "loss" for the total."""
        named = losses if isinstance(losses, Mapping) else {"loss": losses}
        self._losses.append((_detached(named), samples if count is None else _host_number(count)))
        self._samples += samples
        self._tokens += tokens

    def take(self) -> dict[str, Any]:
        """Return the arguments of `TrainingMonitor.step`, and start anew."""
        losses, samples, tokens = self._losses, self._samples, self._tokens
        self._losses, self._samples, self._tokens = [], 0, 0
        if not losses:
            return {"samples": samples, "tokens": tokens}
        names = set.intersection(*(set(named) for named, _ in losses))
        means = {name: _mean([(named[name], count) for named, count in losses]) for name in names}
        count = losses[0][1] if len(losses) == 1 else sum(count for _, count in losses)
        return {"samples": samples, "tokens": tokens, "losses": means, "count": count}


def batch_size(batch: Any) -> int:
    """Return the number of samples of a batch: the length of the first tensor that is found in it."""
    return next((len(leaf) for leaf in _tensors(batch) if leaf.ndim), 1)


def token_count(batch: Any) -> int:
    """Return the number of tokens of a batch that has `input_ids`, padding included; 0 of another."""
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    return ids.numel() if isinstance(ids, Tensor) else 0


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, (list, tuple)):
        for value in batch:
            yield from _tensors(value)


def _detached(named: Mapping[str, Any]) -> dict[str, Any]:
    return {name: v.detach() if isinstance(v, Tensor) else v for name, v in named.items()}


def _mean(parts: list[tuple[Any, Any]]) -> Any:
    """Return sum(count * value) / sum(count); what has a count of 0 does not matter, not even NaN."""
    if len(parts) == 1:
        return parts[0][0]
    total, weight = 0.0, 0.0
    for value, count in parts:
        total = total + _product(value, count)
        weight = weight + count
    return total / weight if isinstance(weight, Tensor) or weight > 0 else math.nan


def _product(value: Any, count: Any) -> Any:
    """Return value * count, 0 where the count is 0; a number is not copied to the value's device."""
    wide = value.double() if isinstance(value, Tensor) and value.device.type != "mps" else value
    if isinstance(count, Tensor):
        return torch.where(count > 0, wide * count, 0.0)
    return wide * count if count > 0 else 0.0


def _host_number(count: Any) -> Any:
    """Return a count that is on the host as a number, so that it goes with losses on any device."""
    return count.item() if isinstance(count, Tensor) and count.device.type == "cpu" else count
