"""Named tensors as one byte vector, without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

_ALIGN = 8


def encode_blob(tensors: Mapping[str, Mapping[str, Tensor]]) -> Tensor | None:
    """Return uint8 bytes: the length of a JSON index, the index, each tensor's bytes; None of nothing."""
    if not tensors:
        return None
    index, parts = [], []
    for owner, named in tensors.items():
        for name, tensor in named.items():
            data = tensor.contiguous()
            index.append([owner, name, str(data.dtype).removeprefix("torch."), list(data.shape)])
            parts.append(_pad(data.reshape(-1).view(torch.uint8)))
    text = json.dumps(index).encode()
    head = torch.from_numpy(np.frombuffer(text.ljust(_aligned(len(text))), dtype=np.uint8).copy())
    length = torch.tensor([len(head)], dtype=torch.int64, device="cpu").view(torch.uint8)
    return torch.cat([length, head, *parts])


def decode_blob(data: Tensor) -> dict[str, dict[str, Tensor]]:
    """Read what `encode_blob` wrote."""
    if data.numel() == 0:
        return {}
    length = int(data[:8].clone().view(torch.int64).item())
    index = json.loads(data[8 : 8 + length].numpy().tobytes())
    position = 8 + length
    tensors: dict[str, dict[str, Tensor]] = {}
    for owner, name, dtype_name, shape in index:
        dtype = getattr(torch, dtype_name)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        flat = data[position : position + size].clone().view(dtype)
        tensors.setdefault(owner, {})[name] = flat.reshape(shape)
        position += _aligned(size)
    return tensors


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def _pad(data: Tensor) -> Tensor:
    missing = _aligned(data.numel()) - data.numel()
    return torch.nn.functional.pad(data, (0, missing)) if missing else data
