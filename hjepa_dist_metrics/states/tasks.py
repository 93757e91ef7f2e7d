"""What is costly to work out of a merged state, and small: in a sync one rank does it for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Task:
    """Offer a piece of work: `run` returns `size` numbers, float64; `keep` takes them, on every rank.

    `run` takes about `seconds` on one core. It must not fail: the other ranks wait for its result, and NaN
    tells as much.
    """

    seconds: float
    size: int
    run: Callable[[], Tensor]
    keep: Callable[[Tensor], None]
