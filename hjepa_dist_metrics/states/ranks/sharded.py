"""Numbers of a thing that lies over ranks, one gradient for instance: the latest of each.

Each rank has one of three roles in a number: it holds a `SHARD`, and the shards add up (or the extreme wins);
it holds the whole as a `REPLICATED` copy, as all others do, and extremes must agree; or it is a `NON_OWNER`,
because another rank counts for the same shard. Over time the latest replaces the earlier.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hjepa_dist_metrics.states.base import Numeric, State, as_tensor, follow, require_same_signature
from hjepa_dist_metrics.states.row_state import NAN, Block, Signed, namespace

NON_OWNER, SHARD, REPLICATED = 0, 1, 2


class _Sharded(Signed):
    """Share what sums and extremes have in common.

    Fields are the value, the number of shards and of copies, and the three of `Signed`.
    """

    fields = 6
    compares: ClassVar[bool] = True  # whether copies must agree
    _nothing: float

    @classmethod
    def _blank(cls, size: int) -> Tensor:
        data = super()._blank(size)
        data[0] = cls._nothing
        return data

    @property
    def value(self) -> Any:
        """Return the value over all shards."""
        return self._field(0)

    @property
    def known(self) -> bool:
        """Return whether any rank holds something."""
        return bool((self.data[1:3] > 0).any().item())

    def update(self, values: Numeric, roles: Tensor) -> None:
        """Replace what this rank holds; `roles`, int [*shape], says what that is."""
        batch = self._batch(values)[-1]
        role = as_tensor(roles, batch.device).reshape(-1)
        shard, copy = role == SHARD, role == REPLICATED
        held = torch.where(shard | copy, batch, torch.full_like(batch, self._nothing))
        signs = torch.full((3, self.size), NAN, dtype=torch.float64, device=batch.device)
        numbers = torch.stack([held, shard.to(torch.float64), copy.to(torch.float64)])
        self.data = torch.cat([numbers, signs])

    @classmethod
    def merge_rows(cls, lower: Block, upper: Block) -> Block:
        """Put the ranks' shards together, or keep a copy; of one rank take what it holds later."""
        xp = namespace(lower)
        held, other_held = lower[1] + lower[2] > 0, upper[1] + upper[2] > 0
        merged = xp.where(held, lower, upper)
        shards = (lower[1] > 0) & (upper[1] > 0)
        merged[0] = xp.where(shards, cls._together(lower[0], upper[0]), merged[0])
        merged[1:3] = xp.where(held & other_held, lower[1:3] + upper[1:3], merged[1:3])
        if cls.compares:
            copies = (lower[2] > 0) & (upper[2] > 0)
            merged[-2], merged[-1] = cls.contradicted(lower, upper, copies & cls.unlike(lower, upper))
        later = cls.later(lower, upper)
        return xp.where(later & other_held, upper, merged) if later.any() else merged

    @classmethod
    @abstractmethod
    def _together(cls, lower: Block, upper: Block) -> Block:
        """Return the values of two ranks' shards together."""


class ShardedSum(_Sharded):
    """Add up the ranks' shards: `.value`, 0 without any.

    Copies are not compared: a sum of many values is rounded in another way on another kind of processor, and
    where it cancels no tolerance is right. Extremes are exact, and what they are taken of is compared there.
    """

    compares = False
    _nothing = 0.0

    @classmethod
    def conflicts(cls, block: Block) -> Block | None:
        """Return None: nothing is compared."""
        return None

    @classmethod
    def _together(cls, lower: Block, upper: Block) -> Block:
        return lower + upper


class ShardedMax(_Sharded):
    """Take the largest of the ranks' shards: `.value`, minus infinity without any, NaN where any is NaN."""

    _nothing = float("-inf")

    @classmethod
    def _together(cls, lower: Block, upper: Block) -> Block:
        return namespace(lower).maximum(lower, upper)


class ShardedMin(_Sharded):
    """Take the smallest of the ranks' shards: `.value`, infinity without any, NaN where any is NaN."""

    _nothing = float("inf")

    @classmethod
    def _together(cls, lower: Block, upper: Block) -> Block:
        return namespace(lower).minimum(lower, upper)


class ShardedCounts(State):
    """Add up the ranks' counts: `.counts`, int64 [n, bins]."""

    def __init__(self, size: int, bins: int) -> None:
        self.size, self.bins = size, bins
        self._load(self._blank())

    def _blank(self) -> dict[str, Tensor]:
        return {
            "count": torch.zeros((self.size, self.bins), dtype=torch.int64, device="cpu"),
            "held": torch.zeros((2, self.size), dtype=torch.int64, device="cpu"),
            "rank": torch.full((1,), NAN, dtype=torch.float64, device="cpu"),
        }

    def _load(self, tensors: dict[str, Tensor]) -> None:
        self._count, self._held, self._rank = tensors["count"], tensors["held"], tensors["rank"]

    @property
    def signature(self) -> str:
        """Describe kind and shape."""
        return f"ShardedCounts[{self.size}, {self.bins}]"

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Return the counts over all shards."""
        return self._count.cpu().numpy()

    @property
    def known(self) -> bool:
        """Return whether any rank holds something."""
        return bool(self._held.any().item())

    def empty(self) -> ShardedCounts:
        """Return counts of nothing."""
        return self.adopt(self._blank())

    def pack(self) -> dict[str, Tensor]:
        """Return `count`, how many shards and copies are `held`, and the `rank`, NaN before a sync."""
        return {"count": self._count, "held": self._held, "rank": self._rank}

    def unpack(self, tensors: Any) -> ShardedCounts:
        """Return a state that goes on from a merged one: it belongs to no rank yet."""
        return super().unpack({**tensors, "rank": self._blank()["rank"]})

    def signed(self, rank: int, steps: int) -> ShardedCounts:
        """Return the counts as those of `rank`."""
        return self.adopt({**self.pack(), "rank": torch.full_like(self._rank, float(rank))})

    def update(self, counts: Tensor, roles: Tensor) -> None:
        """Replace what this rank holds; `roles`, int [n], as in the other states of this kind."""
        count = as_tensor(counts, self._count.device).to(torch.int64)
        role = as_tensor(roles, count.device)
        held = torch.stack([role == SHARD, role == REPLICATED]).to(torch.int64)
        self._load({"count": count * (role != NON_OWNER)[:, None], "held": held, "rank": self._rank})

    def merge(self, other: ShardedCounts) -> ShardedCounts:
        """Add shards of two ranks, keep one of their copies; of one rank take what it holds later."""
        require_same_signature(self, other)
        theirs = {name: follow(tensor, self._count) for name, tensor in other.pack().items()}
        rank = follow(self._rank, self._count)
        later = rank.isnan() | theirs["rank"].isnan() | (rank == theirs["rank"])
        held, others = self._held.sum(dim=0) > 0, theirs["held"].sum(dim=0) > 0
        shards = (self._held[0] > 0) & (theirs["held"][0] > 0) & ~later
        taken = others & (~held | later)
        count = torch.where(taken[:, None], theirs["count"], self._count)
        count = torch.where(shards[:, None], self._count + theirs["count"], count)
        known = torch.maximum(self._held, theirs["held"])
        return self.adopt(
            {
                "count": count,
                "held": torch.where(taken, theirs["held"], torch.where(shards, known, self._held)),
                "rank": torch.fmax(rank, theirs["rank"]),
            }
        )
