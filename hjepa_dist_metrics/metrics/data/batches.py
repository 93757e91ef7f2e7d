"""What is wrong with batches as such: the same ones again, the same ones on several ranks, constant ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.metrics.buffered import BufferedMetric
from hjepa_dist_metrics.metrics.data.fingerprints import fingerprint, inputs_of, is_constant
from hjepa_dist_metrics.states import RankExtremes
from hjepa_dist_metrics.states.base import follow, to_device
from hjepa_dist_metrics.states.sketches.distinct import Distinct
from hjepa_dist_metrics.states.sketches.hashing import mix

# With how many of a rank's own batches before it a batch is compared.
RECENT = 64
# Keys of equal batches of one step are counted under the step's number modulo this, in the lowest bits.
_SLOTS = 16
# How many different batches of all ranks and of the steps of one log are counted, at 16 bytes each.
_KEPT = 64


# A step, the key of its batch, whether the batch repeats another (None: there is none to compare with), and
# whether it is constant.
_Look = tuple[int, Tensor, Tensor | None, Tensor]


class BatchContent(BufferedMetric[_Look]):
    """Compare batches by fingerprints of their inputs.

    Tags under `data/`: `repeated_batches`, the share of batches that equal one of the last 64 of their rank
    and pass, on the rank with most, and `repeated_batches_rank`; `constant_batches`, the share of batches
    whose inputs hold one value only, and `constant_batches_rank`, the same; `shared_batches`, the share of
    steps in which two or more ranks had the same batch. Ranks are named where a share is above 0.

    What counts as inputs is written at `inputs_of`; a batch without tensors does not count. Of large inputs
    16,384 elements are read. A pass over a loader begins with `start_pass`: batches of different passes are
    not compared, so that a dataset without shuffling repeats nothing. With `compare_ranks=False` batches of
    ranks are not compared, for ranks that work on one batch together, as in tensor parallelism. Of more than
    64 different batches a sample of 64 is compared.

    >>> metric = BatchContent()
    >>> for step in range(4):
    ...     metric.update(torch.ones(8, 3), step)
    >>> values = metric.compute()
    >>> values["data/constant_batches"], values["data/repeated_batches"]
    (1.0, 1.0)
    """

    def __init__(self, compare_ranks: bool = True) -> None:
        self.compare_ranks = compare_ranks
        for name in ("repeated", "constant"):
            self.add_state(name, RankExtremes())
        self.add_state("batches", Distinct(_KEPT))
        self._recent: Tensor | None = None  # int64 keys, the newest last

    def start_pass(self) -> None:
        """Compare no batch with those before: a pass over the data begins."""
        self._recent = None

    @property
    def recent(self) -> list[int]:
        """Return the keys with which the next batch is compared, for a checkpoint; this waits for them."""
        return [] if self._recent is None else self._recent.tolist()

    @recent.setter
    def recent(self, keys: Sequence[int]) -> None:
        self._recent = torch.tensor(keys, dtype=torch.int64, device="cpu") if keys else None

    def update(self, batch: Any, step: int) -> None:
        """Look at this rank's batch of a step, one a step."""
        inputs = inputs_of(batch)
        if not inputs:
            return
        key = fingerprint(inputs)
        own, repeats = key.reshape(1), None
        if self._recent is not None:
            recent = follow(self._recent, own)
            repeats = (recent == key).any()
            own = torch.cat([recent[1 - RECENT :], own])
        self._recent = own
        self._defer((step, key, repeats, is_constant(inputs)))

    def _flush(self, steps: Sequence[_Look]) -> None:
        numbers, keys, repeats, constant = zip(*steps, strict=True)
        self._states["constant"].update(torch.stack(constant))
        if compared := [repeat for repeat in repeats if repeat is not None]:
            self._states["repeated"].update(torch.stack(compared))
        if self.compare_ranks:
            at = to_device(torch.tensor(numbers, device="cpu"), keys[0].device)
            mixed = mix(mix(torch.stack(keys), 1) + at, 2)
            self._states["batches"].update((mixed & ~(_SLOTS - 1)) | at % _SLOTS)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tags; {} before the first batch with tensors."""
        tags: dict[str, Any] = {}
        for name in ("repeated", "constant"):
            share = states[name].highest
            if share == share:
                tags[f"data/{name}_batches"] = share
            if share > 0:
                tags[f"data/{name}_batches_rank"] = states[name].highest_rank or 0
        if states["batches"].total:
            tags["data/shared_batches"] = _shared(states["batches"].pack())
        return tags


def _shared(packed: Mapping[str, Tensor]) -> float:
    """Return the share of steps of which a key was counted more than once."""
    counts = packed["counts"].cpu()
    steps = (packed["keys"].cpu() % _SLOTS).tolist()
    seen = {step for step, count in zip(steps, counts.tolist(), strict=True) if count}
    twice = {step for step, count in zip(steps, counts.tolist(), strict=True) if count > 1}
    return len(twice) / max(len(seen), 1)


_data = partial(Entry, dashboard="stability")

ENTRIES = (
    _data(
        "data/repeated_batches",
        "repeated batches",
        "Share of batches whose inputs equal one of the rank's last 64 in the same pass over the loader, on "
        "the rank with most. Read in the 4 steps up to each log; epochs are not compared with each other.",
        healthy="0; near 1 the same batch comes again and again",
    ),
    _data(
        "data/repeated_batches_rank",
        "rank with most repeated batches",
        "Number of the rank behind data/repeated_batches.",
        unit="rank",
        dashboard="",
    ),
    _data(
        "data/shared_batches",
        "batches shared by ranks",
        "Share of steps in which two or more ranks had the same inputs. Read in the 4 steps up to each log.",
        healthy="0; near 1 every rank reads the same shard: is there a distributed sampler?",
    ),
    _data(
        "data/constant_batches",
        "constant batches",
        "Share of batches whose inputs hold one value only, on the rank with most.",
        healthy="0; above it a rank reads empty inputs",
    ),
    _data(
        "data/constant_batches_rank",
        "rank with most constant batches",
        "Number of the rank behind data/constant_batches.",
        unit="rank",
        dashboard="",
    ),
)
