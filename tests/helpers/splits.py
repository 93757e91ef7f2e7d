"""Any split of samples over ranks and batches, drawn by hypothesis."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from hypothesis import strategies as st

from hjepa_dist_metrics import DistributedMetric, MetricCollection, ProcessContext
from hjepa_dist_metrics.states import State
from tests.helpers.ranks import run_ranks

# Per rank a list of batch sizes: zero batches and empty batches included.
Split = list[list[int]]


def splits(most_ranks: int = 4, most_batches: int = 3, most_rows: int = 9) -> st.SearchStrategy[Split]:
    batches = st.lists(st.integers(0, most_rows), max_size=most_batches)
    return st.lists(batches, min_size=1, max_size=most_ranks)


def total(split: Split) -> int:
    return sum(map(sum, split))


def parts(split: Split) -> list[list[slice]]:
    """Return each rank's batches as slices of the samples."""
    start, ranks = 0, []
    for batches in split:
        slices = []
        for size in batches:
            slices.append(slice(start, start + size))
            start += size
        ranks.append(slices)
    return ranks


class Holder(DistributedMetric):
    """Hold states, and report nothing."""

    def __init__(self, states: dict[str, State]) -> None:
        for name, state in states.items():
            self.add_state(name, state)

    def update(self) -> None:
        pass

    def compute_from(self, states):
        return {}


def sync_states(per_rank: Sequence[dict[str, State]]) -> list[dict[str, State]]:
    """Return what each rank holds after a sync of the ranks' states."""

    def body(context: ProcessContext) -> dict[str, State]:
        collection = MetricCollection({"m": Holder(per_rank[context.rank])}, context)
        return collection.compute(lambda _, merged: dict(merged["m"]))

    return run_ranks(len(per_rank), body)


def merged_over(split: Split, make: Callable[[], State], feed: Callable[[State, slice], None]) -> State:
    """Feed each rank its batches, sync, and return rank 0's state; all ranks must hold its bits."""
    states = []
    for slices in parts(split):
        state = make()
        for piece in slices:
            feed(state, piece)
        states.append({"state": state})
    merged = [held["state"] for held in sync_states(states)]
    for other in merged[1:]:
        assert same_bits(other, merged[0])
    return merged[0]


def same_bits(one: State, other: State) -> bool:
    first, second = one.pack(), other.pack()
    return first.keys() == second.keys() and all(bits(first[name]) == bits(second[name]) for name in first)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
