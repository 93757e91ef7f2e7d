"""What the frame has no room for: its last rows, and bytes. It is gathered, or goes along with a sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hjepa_dist_metrics.distributed.channel import Channel
from hjepa_dist_metrics.sync.blobs import decode_blob
from hjepa_dist_metrics.sync.plan import Floats

Blobs: TypeAlias = list[dict[str, dict[str, Tensor]]]

# A sum moves twice what a gather does, and 4 bytes at the weight of 8: with more than this, the collective
# that is saved costs more than it brings.
_MOST_SLOT_BYTES = 16 << 20
_WORD = 4  # bytes that a float64 carries exactly


class Rest:
    """Hold this rank's rows [n] and bytes; `sizes` are the numbers of bytes of all ranks, multiples of 8."""

    __slots__ = ("blob", "rows", "sizes")

    def __init__(self, rows: Floats, blob: Tensor | None, sizes: Sequence[int]) -> None:
        self.rows, self.blob, self.sizes = rows, blob, sizes

    def __bool__(self) -> bool:
        """Return whether any rank has anything to send."""
        return len(self.rows) > 0 or any(self.sizes)

    @property
    def _width(self) -> int:
        return (self.rows.nbytes + max(self.sizes)) // _WORD

    @property
    def fits_sum(self) -> bool:
        """Return whether a slot for each rank is little enough to be added up."""
        return 8 * self._width * len(self.sizes) <= _MOST_SLOT_BYTES

    def _message(self) -> npt.NDArray[np.uint8]:
        """Return rows and bytes, as many bytes on every rank."""
        size = self.rows.nbytes
        message = np.zeros(size + max(self.sizes), dtype=np.uint8)
        message[:size] = self.rows.view(np.uint8)
        if self.blob is not None:
            message[size : size + self.blob.numel()] = self.blob.numpy()
        return message

    def gather(self, channel: Channel) -> tuple[Floats, Blobs]:
        """Return every rank's rows [W, n] and tensors by state. A collective call."""
        return self._read(channel.all_gather(torch.from_numpy(self._message())).numpy())

    def slots(self, rank: int) -> Tensor:
        """Return a vector with a slot for each rank, all but this rank's zero: float64 [W * width].

        The rows go as 32-bit words too: keys travel as the bits of float64, of which addition keeps not all.
        """
        slots = np.zeros((len(self.sizes), self._width))
        slots[rank] = self._message().view(np.uint32)
        return torch.from_numpy(slots.reshape(-1))

    def read(self, total: Tensor) -> tuple[Floats, Blobs]:
        """Return what `gather` does, from the sum of all ranks' slots."""
        words = total.numpy().reshape(len(self.sizes), -1).astype(np.uint32)
        return self._read(words.view(np.uint8))

    def _read(self, messages: npt.NDArray[np.uint8]) -> tuple[Floats, Blobs]:
        size = self.rows.nbytes
        tails = torch.from_numpy(messages[:, size:])
        blobs = [decode_blob(tail[:own]) for tail, own in zip(tails, self.sizes, strict=True)]
        return messages[:, :size].copy().view(np.float64), blobs
