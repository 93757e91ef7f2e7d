"""Row states by name: which names there are, and how wide each is, is data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.states.base import State, follow, require_same_signature
from hjepa_dist_metrics.states.row_state import RowState


class NamedRows(State):
    """Keep one block of the row state `of` for each name, float64 [fields, n].

    Merging takes the union of the names, so that ranks with other layers of a model add their own. Blocks of
    one name must be of one width, unless `grows`: then the narrower one is filled up with columns that have
    seen nothing.
    """

    fixed = False

    def __init__(self, of: type[RowState] | str, grows: bool = False) -> None:
        kind = State.kinds[of] if isinstance(of, str) else of
        assert issubclass(kind, RowState)
        self.of, self.grows = kind, grows
        self._blocks: dict[str, Tensor] = {}

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Return the name of the class, and whether blocks grow."""
        return {"of": self.of.kind(), "grows": self.grows}

    @property
    def signature(self) -> str:
        """Describe what is kept; names and widths are data."""
        return f"NamedRows[{self.of.__name__}{', grows' if self.grows else ''}]"

    def __len__(self) -> int:
        return len(self._blocks)

    def items(self) -> Iterator[tuple[str, Any]]:
        """Yield each name and its row state, on the host; numbers in names go by their size: 2 before 10."""
        for name in sorted(self._blocks, key=_natural):
            block = self._blocks[name].cpu()
            yield name, self.of((block.shape[1],)).holding(block)

    def empty(self) -> NamedRows:
        """Return a state without names."""
        return NamedRows(self.of, self.grows)

    def update(self, name: str, block: Tensor) -> None:
        """Merge a block [fields, n] of a batch into that of `name`."""
        known = self._blocks.get(name)
        if known is not None:
            known = follow(known, block)
        self._blocks = {**self._blocks, name: block if known is None else self._merged(name, known, block)}

    def merge(self, other: NamedRows) -> NamedRows:
        """Merge the blocks, name by name."""
        require_same_signature(self, other)
        merged = self.empty()
        merged._blocks = dict(self._blocks)
        for name, block in other._blocks.items():
            merged.update(name, block)
        return merged

    def _merged(self, name: str, lower: Tensor, upper: Tensor) -> Tensor:
        width = max(lower.shape[1], upper.shape[1])
        if lower.shape[1] != upper.shape[1] and not self.grows:
            raise ConfigError(f"{name!r} has {lower.shape[1]} columns, and {upper.shape[1]} elsewhere")
        merged: Tensor = self.of.merge_rows(
            self._filled(lower, width), self._filled(upper.to(lower.device), width)
        )
        return merged

    def _filled(self, block: Tensor, width: int) -> Tensor:
        missing = width - block.shape[1]
        if not missing:
            return block
        return torch.cat([block, self.of((missing,)).data.to(block.device, non_blocking=True)], dim=1)

    def pack(self) -> dict[str, Tensor]:
        """Return `names`, a JSON list of [name, width] as bytes, and all blocks side by side as `rows`."""
        names = sorted(self._blocks)
        table = json.dumps([[name, self._blocks[name].shape[1]] for name in names])
        text = torch.from_numpy(np.frombuffer(table.encode(), dtype=np.uint8).copy())
        if not names:
            return {
                "names": text,
                "rows": torch.zeros((self.of.fields, 0), dtype=torch.float64, device="cpu"),
            }
        first = next((b for b in self._blocks.values() if not b.is_cpu), self._blocks[names[0]])
        return {"names": text, "rows": torch.cat([follow(self._blocks[n], first) for n in names], dim=1)}

    def _load(self, tensors: dict[str, Tensor]) -> None:
        table: list[tuple[str, int]] = json.loads(tensors["names"].cpu().numpy().tobytes())
        parts = tensors["rows"].to(torch.float64).split_with_sizes([width for _, width in table], dim=1)
        self._blocks = {name: part for (name, _), part in zip(table, parts, strict=True)}


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Return what to sort a dotted name by: its numbers by size."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]
