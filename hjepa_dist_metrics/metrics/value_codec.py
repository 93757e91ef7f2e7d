"""Values as text, for ranks that cannot compute them: JSON, with arrays as base64."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from hjepa_dist_metrics import values
from hjepa_dist_metrics.states import State
from hjepa_dist_metrics.values import Scalar, Value

_ARRAY, _BYTES, _KIND = "array", "bytes", "kind"


class Documents(State):
    """Keep texts by name: `.texts`. Of two texts under one name the first rank's stays."""

    fixed = False

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    @classmethod
    def of(cls, texts: Mapping[str, str]) -> Self:
        """Return documents with these texts."""
        documents = cls()
        documents.update(texts)
        return documents

    @property
    def signature(self) -> str:
        """Describe the kind; the names are data."""
        return "Documents"

    def empty(self) -> Documents:
        """Return no texts."""
        return Documents()

    def update(self, texts: Mapping[str, str]) -> None:
        """Add texts."""
        self.texts = {**self.texts, **texts}

    def merge(self, other: Documents) -> Documents:
        """Return the texts of both."""
        return Documents.of({**other.texts, **self.texts})

    def pack(self) -> dict[str, Tensor]:
        """Return the texts as JSON, in bytes."""
        data = np.frombuffer(json.dumps(self.texts).encode(), dtype=np.uint8)
        return {"json": torch.from_numpy(data.copy())}

    def _load(self, tensors: dict[str, Tensor]) -> None:
        self.texts = json.loads(tensors["json"].cpu().numpy().tobytes())


def encode_value(value: Value) -> str:
    """Return any value but a drawing as text; numbers keep every bit."""
    if isinstance(value, Scalar):
        return json.dumps(float(value))
    fields = {f.name: _encoded(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return json.dumps({_KIND: type(value).__name__, **fields})


def decode_value(text: str) -> Value:
    """Read what `encode_value` wrote."""
    data = json.loads(text)
    if not isinstance(data, dict):
        return Scalar(data)
    value: Value = getattr(values, data.pop(_KIND))(**{name: _decoded(item) for name, item in data.items()})
    return value


def _encoded(item: Any) -> Any:
    if isinstance(item, np.ndarray):
        data = base64.b64encode(np.ascontiguousarray(item).tobytes()).decode()
        return {_ARRAY: data, "dtype": str(item.dtype), "shape": item.shape}
    if isinstance(item, bytes):
        return {_BYTES: base64.b64encode(item).decode()}
    return item


def _decoded(item: Any) -> Any:
    if isinstance(item, dict) and _ARRAY in item:
        flat = np.frombuffer(base64.b64decode(item[_ARRAY]), dtype=item["dtype"])
        return flat.reshape(item["shape"]).copy()
    if isinstance(item, dict):
        return base64.b64decode(item[_BYTES])
    return tuple(item) if isinstance(item, list) else item
