"""The last steps of a job, each added up over its ranks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hjepa_dist_metrics.states.base import Numeric, as_tensor, follow, moved, to_device
from hjepa_dist_metrics.states.row_state import Block, RowState, namespace


class StepWindow(RowState):
    """Keep a weighted sum for each of the last `window` steps: `.steps`, `.means`, in the order of the steps.

    Step s lies in column s modulo the window. Merged, the later step of a column stands, and sums of several
    ranks for the same step are added.
    """

    fields = 3

    def __init__(self, window: int) -> None:
        self.window = window
        super().__init__((window,))

    @classmethod
    def _blank(cls, size: int) -> Tensor:
        data = torch.zeros((3, size), dtype=torch.float64, device="cpu")
        data[0] = -1.0
        return data

    @classmethod
    def merge_rows(cls, lower: Block, upper: Block) -> Block:
        """Take each column's later step; sums of the same step are added."""
        xp = namespace(lower)
        merged = xp.where(upper[0] > lower[0], upper, lower)
        merged[1:] = xp.where(upper[0] == lower[0], lower[1:] + upper[1:], merged[1:])
        return merged

    def update(self, step: int, value: Numeric, count: Numeric = 1) -> None:
        """Record a mean over `count` samples at a step; a count of 0 records that there was nothing.

        Several updates of one step are added, here as over ranks.
        """
        mean = as_tensor(value, self.data.device).to(torch.float64).reshape(1)
        weight = moved(as_tensor(count, mean.device), mean.device, torch.float64)
        self.update_many([step], mean, weight.reshape(1))

    def update_many(self, steps: Sequence[int], means: Tensor, counts: Tensor) -> None:
        """Record many steps in their order: means and counts float64 [n], on one device."""
        sums = torch.stack([torch.where(counts > 0, means * counts, torch.zeros_like(means)), counts])
        start = 0
        for stop in (*self._breaks(steps), len(steps)):
            self._write(steps[start:stop], sums[:, start:stop])
            start = stop

    def _breaks(self, steps: Sequence[int]) -> Iterator[int]:
        """Yield where a step goes back, or begins to overwrite what those before it have written."""
        first = steps[0]
        for place, (before, step) in enumerate(itertools.pairwise(steps), start=1):
            if step <= before or step - first >= self.size:
                first = step
                yield place

    def _write(self, steps: Sequence[int], sums: Tensor) -> None:
        data = follow(self.data, sums)
        numbers = to_device(torch.tensor(steps, device="cpu"), sums.device)
        places = numbers % self.size
        before = data.index_select(1, places)
        kept = torch.where(before[0] == numbers, before[1:], torch.zeros_like(sums))
        self.data = data.index_copy(1, places, torch.cat([numbers.to(torch.float64)[None], sums + kept]))

    def refit(self, packed: Mapping[str, Any]) -> dict[str, Any]:
        """Return packed data of any window as that of this state's window: the latest steps that it holds."""
        saved = packed["data"]
        steps = saved[0]
        kept = saved[:, (steps >= 0) & (steps > steps.max() - self.size)]
        data = self._blank(self.size)
        data[:, kept[0].to(torch.int64) % self.size] = kept.to(data.device)
        return {"signature": self.signature, "data": data}

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """Return the steps that have samples, rising."""
        steps: npt.NDArray[np.int64] = self._ordered()[0].astype(np.int64)
        return steps

    @property
    def means(self) -> npt.NDArray[np.float64]:
        """Return the mean of each of those steps."""
        _, sums, counts = self._ordered()
        means: npt.NDArray[np.float64] = sums / counts
        return means

    @property
    def latest(self) -> int:
        """Return the number of the latest step; -1 before the first."""
        return int(self.data[0].max().item())

    def _ordered(self) -> npt.NDArray[np.float64]:
        data: npt.NDArray[np.float64] = self.data.cpu().numpy()
        seen = data[:, data[2] > 0]
        return seen[:, np.argsort(seen[0])]
