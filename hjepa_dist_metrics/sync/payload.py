"""The numbers of a block of ranks: row states as one vector, other states each in its own bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hjepa_dist_metrics.states import State
from hjepa_dist_metrics.sync.manifest import Manifest

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

_ALIGN = 8
_NAME = 16  # bytes of a tensor's name, or as many more as it has
_DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
_CODES = {dtype: code for code, dtype in enumerate(_DTYPES)}


class MergeError(Exception):
    """Two states of one signature cannot be merged all the same: rows of different widths, for instance."""


class Payload(NamedTuple):
    """Hold the numbers of the row states, in the manifest's layout, and the other states by name."""

    numbers: Floats
    others: Mapping[str, State]

    def signed(self, manifest: Manifest, rank: int, steps: int) -> Payload:
        """Return the payload as that of `rank`, of compact states; the numbers are changed in place."""
        for group in manifest.groups:
            group.kind.sign_rows(group.block(self.numbers), rank, steps)
        return Payload(
            self.numbers, {name: _compact(s.signed(rank, steps)) for name, s in self.others.items()}
        )

    def expanded(self) -> dict[str, State]:
        """Return the other states as they are outside of a sync."""
        return {name: state.adopt(state.expand(state.pack())) for name, state in self.others.items()}

    def merge(self, manifest: Manifest, upper: Payload) -> Payload:
        """Merge with the payload of the block of higher ranks."""
        numbers = np.empty(manifest.numbers)
        others, name = {}, ""
        try:
            with np.errstate(all="ignore"):  # infinities cancel to NaN: a finding, reported as such
                for group in manifest.groups:
                    lower, other, name = group.block(self.numbers), group.block(upper.numbers), group.names[0]
                    group.block(numbers)[:] = group.kind.merge_rows(lower, other)
            for name, state in self.others.items():
                others[name] = state.merge(upper.others[name])
        except Exception as error:
            raise MergeError(f"state {name!r}: {type(error).__name__}: {error}") from error
        return Payload(numbers, others)

    def encode(self) -> Bytes:
        """Return the payload as bytes, a multiple of 8."""
        numbers = self.numbers.view(np.uint8)
        if not self.others:
            return numbers
        return np.concatenate([numbers, *_encoded(self.others.values())])

    @classmethod
    def decode(cls, manifest: Manifest, data: Bytes) -> Payload:
        """Read what `encode` wrote; the numbers may be a view of `data`, other states are copies."""
        size = 8 * manifest.numbers
        numbers = data[:size].view(np.float64)
        if not manifest.others:
            return cls(numbers, {})
        tensors = _decoded(data[size:].copy())
        prototypes = ((name, manifest.states[name]) for name in manifest.others)
        return cls(numbers, {name: s.adopt(next(tensors)) for name, s in prototypes})

    def lifted(self, own: Manifest, union: Manifest) -> Payload:
        """Return the payload in the layout of a manifest that has all states of `own`, and more."""
        if own is union:
            return self
        numbers = np.empty(union.numbers)
        for group in union.groups:
            block = group.block(numbers)
            for name, start in zip(group.names, group.starts, strict=True):
                state: Any = union.states[name]
                columns = slice(start, start + state.size)
                if name in own.places:
                    mine, at = own.places[name]
                    block[:, columns] = mine.block(self.numbers)[:, at : at + state.size]
                else:
                    block[:, columns] = state.empty().data.numpy()
        missing = (name for name in union.others if name not in self.others)
        others = {**self.others, **{name: _compact(union.states[name].empty()) for name in missing}}
        return Payload(numbers, {name: others[name] for name in union.others})


def _compact(state: State) -> State:
    return state.adopt(state.compact(state.pack()))


def _encoded(states: Iterable[State]) -> Iterator[Bytes]:
    """Yield how states are sent: how many tensors each has, then of each name, dtype, shape and bytes."""
    for state in states:
        tensors = state.compact(state.pack())  # a merge may leave room for what both have alike
        yield _words([len(tensors)])
        for name, tensor in tensors.items():
            # A copy, for one element counts as contiguous with any stride, and as bytes it is several.
            flat = tensor.reshape(-1).clone(memory_format=torch.contiguous_format)
            data = flat.view(torch.uint8).numpy()
            text = name.encode()
            text = text.ljust(max(_NAME, -(-len(text) // _ALIGN) * _ALIGN), b"\0")
            head = [_CODES[tensor.dtype], len(text), tensor.ndim, *tensor.shape]
            yield _words(head)
            yield np.frombuffer(text, dtype=np.uint8)
            yield data
            if len(data) % _ALIGN:
                yield np.zeros(-len(data) % _ALIGN, dtype=np.uint8)


def _decoded(data: Bytes) -> Iterator[dict[str, Tensor]]:
    words, at = data.view(np.int64), 0
    while at < len(words):
        count, at, tensors = int(words[at]), at + 1, {}
        for _ in range(count):
            code, length, ndim = words[at : at + 3].tolist()
            shape = words[at + 3 : at + 3 + ndim].tolist()
            at = _ALIGN * (at + 3 + ndim)
            name = data[at : at + length].tobytes().rstrip(b"\0").decode()
            at, dtype = at + length, _DTYPES[code]
            size = math.prod(shape) * dtype.itemsize
            tensors[name] = torch.from_numpy(data[at : at + size]).view(dtype).reshape(shape)
            at = -(-(at + size) // _ALIGN)
        yield tensors


def _words(numbers: Sequence[int]) -> Bytes:
    return np.array(numbers, dtype=np.int64).view(np.uint8)
