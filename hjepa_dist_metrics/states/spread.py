"""Numbers of a thing that lies spread over ranks, one gradient for instance: the latest of each.

Each rank plays one of three roles in a number: it holds a `PIECE`, and the pieces add up (or the extreme
wins); it holds the `WHOLE`, and so do all others, whose extremes must agree; or it stays `SILENT`, because
another rank speaks for the same piece. Over time the latest replaces the earlier.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hjepa_dist_metrics.states.base import Numeric, State, as_tensor, follow, require_same_signature
from hjepa_dist_metrics.states.row_state import RowState

SILENT, PIECE, WHOLE = 0, 1, 2


class _Spread(RowState):
    """Share what sums and extremes have in common: fields are the value, pieces held and wholes held."""

    fields = 3
    tolerance = 1e-5
    _nothing: float

    @classmethod
    def _blank(cls, size: int) -> Tensor:
        data = torch.zeros((3, size), dtype=torch.float64, device="cpu")
        data[0] = cls._nothing
        return data

    @property
    def value(self) -> Any:
        """Return the value over all pieces."""
        return self._field(0)

    @property
    def known(self) -> bool:
        """Return whether any rank holds something."""
        return bool((self.data[1:] > 0).any().item())

    def update(self, values: Numeric, roles: Tensor) -> None:
        """Replace what this rank holds; `roles`, int [*shape], says what that is."""
        batch = self._batch(values)[-1]
        played = as_tensor(roles, batch.device).reshape(-1)
        piece, whole = played == PIECE, played == WHOLE
        held = torch.where(piece | whole, batch, torch.full_like(batch, self._nothing))
        self.data = torch.stack([held, piece.to(torch.float64), whole.to(torch.float64)])

    def merge(self, other: Any) -> Any:
        """Take what the other holds, which is later, where it holds something."""
        require_same_signature(self, other)
        theirs = other.data.to(self.data.device, non_blocking=True)
        held = theirs[1] + theirs[2] > 0
        return self.adopt({"data": torch.where(held, theirs, self.data)})

    @classmethod
    def merge_rows(cls, rows: Tensor) -> Tensor:
        """Put the pieces together; of wholes, take the first rank's."""
        values, pieces, wholes = rows.unbind(dim=1)
        held = torch.where(pieces > 0, values, torch.full_like(values, cls._nothing))
        first = (wholes > 0).to(torch.int8).argmax(dim=0)
        whole = values.gather(0, first[None])[0]
        total = torch.where(wholes.sum(dim=0) > 0, whole, cls._together(held))
        return torch.stack([total, pieces.sum(dim=0), wholes.sum(dim=0)])

    @classmethod
    def _together(cls, pieces: Tensor) -> Tensor:
        raise NotImplementedError

    @classmethod
    def conflicts(cls, rows: Tensor) -> Tensor | None:
        """Return which ranks hold a whole unlike the first rank's."""
        wholes = rows[:, 2] > 0
        reference = cls.merge_rows(rows)[0]
        same = torch.isclose(rows[:, 0], reference, rtol=cls.tolerance, atol=0.0, equal_nan=True)
        return wholes & ~same


class SpreadSum(_Spread):
    """Add up the ranks' pieces: `.value`, 0 of none.

    Wholes are not compared: a sum of many values is rounded in another way on another kind of processor, and
    where it cancels no tolerance is right. Extremes are exact, and what they are taken of is compared there.
    """

    _nothing = 0.0

    @classmethod
    def conflicts(cls, rows: Tensor) -> Tensor | None:
        """Return None: nothing is compared."""
        return None

    @classmethod
    def _together(cls, pieces: Tensor) -> Tensor:
        return pieces.sum(dim=0)


class SpreadMax(_Spread):
    """Take the largest of the ranks' pieces: `.value`, minus infinity of none, NaN where any is NaN."""

    _nothing = float("-inf")

    @classmethod
    def _together(cls, pieces: Tensor) -> Tensor:
        return pieces.amax(dim=0)


class SpreadMin(_Spread):
    """Take the smallest of the ranks' pieces: `.value`, infinity of none, NaN where any is NaN."""

    _nothing = float("inf")

    @classmethod
    def _together(cls, pieces: Tensor) -> Tensor:
        return pieces.amin(dim=0)


class SpreadCounts(State):
    """Add up the ranks' counts: `.counts`, int64 [n, bins]. What travels does not grow with the ranks."""

    def __init__(self, size: int, bins: int) -> None:
        self.size, self.bins = size, bins
        self._load(self._blank())

    def _blank(self) -> dict[str, Tensor]:
        return {
            "count": torch.zeros((self.size, self.bins), dtype=torch.int64, device="cpu"),
            "held": torch.zeros((2, self.size), dtype=torch.int64, device="cpu"),
        }

    def _load(self, tensors: dict[str, Tensor]) -> None:
        self._count = tensors["count"].to(torch.int64).reshape(self.size, self.bins)
        self._held = tensors["held"].to(torch.int64).reshape(2, self.size)

    @property
    def signature(self) -> str:
        """Describe kind and shape."""
        return f"SpreadCounts[{self.size}, {self.bins}]"

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Return the counts over all pieces."""
        return self._count.cpu().numpy()

    @property
    def known(self) -> bool:
        """Return whether any rank holds something."""
        return bool(self._held.any().item())

    def empty(self) -> SpreadCounts:
        """Return counts of nothing."""
        return self.adopt(self._blank())

    def pack(self) -> dict[str, Tensor]:
        """Return `count` and how many pieces and wholes are `held`."""
        return {"count": self._count, "held": self._held}

    def update(self, counts: Tensor, roles: Tensor) -> None:
        """Replace what this rank holds; `roles`, int [n], as in the other states of this kind."""
        count = as_tensor(counts, self._count.device).to(torch.int64)
        played = as_tensor(roles, count.device)
        self._load(
            {
                "count": count * (played != SILENT)[:, None],
                "held": torch.stack([played == PIECE, played == WHOLE]),
            }
        )

    def merge(self, other: SpreadCounts) -> SpreadCounts:
        """Take what the other holds, which is later, where it holds something."""
        require_same_signature(self, other)
        theirs = {name: follow(tensor, self._count) for name, tensor in other.pack().items()}
        held = theirs["held"].sum(dim=0) > 0
        return self.adopt(
            {
                "count": torch.where(held[:, None], theirs["count"], self._count),
                "held": torch.where(held, theirs["held"], self._held),
            }
        )

    def summed(self, rank: int, gathered: Tensor) -> Tensor:
        """Return the counts and what is held as float64, exact up to 2^53."""
        return torch.cat([self._count.reshape(-1), self._held.reshape(-1)]).to(torch.float64)

    def assemble(self, gathered: Tensor, total: Tensor, centred: Tensor) -> SpreadCounts:
        """Take the sums over pieces; of wholes, which are alike, one."""
        added = total.round().to(torch.int64)
        count = added[: self.size * self.bins].reshape(self.size, self.bins)
        held = added[self.size * self.bins :].reshape(2, self.size)
        one = count // held[1].clamp(min=1)[:, None]
        return self.adopt({"count": one, "held": held.clamp(max=1)})
