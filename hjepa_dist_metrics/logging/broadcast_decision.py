"""What the main process decides and the others must know, such as a run's name: sent in a checked sync.

Not a broadcast over the job's own group: where only some ranks make a logger, that would wait for the others
as long as training may, and meet the first collective that they come to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hjepa_dist_metrics.errors import RankFailureError, SyncTimeoutError
from hjepa_dist_metrics.metrics import DistributedMetric, MetricCollection
from hjepa_dist_metrics.parallel import ProcessContext
from hjepa_dist_metrics.states import Concat
from hjepa_dist_metrics.values import Text

_LONGEST = 4096


class Announcement(DistributedMetric):
    """Hold what one rank says, as UTF-8; the others say nothing."""

    def __init__(self) -> None:
        self.add_state("letters", Concat(_LONGEST, 1, torch.uint8))

    def update(self, text: str) -> None:
        """Say `text`."""
        self.letters.update(torch.tensor(list(text.encode()), dtype=torch.uint8, device="cpu")[:, None])

    def compute_from(self, states: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what was said."""
        return {"text": Text(bytes(states["letters"].rows_kept[:, 0].tolist()).decode())}


def announce(text: str | None, context: ProcessContext, sync_timeout: float, what: str) -> str:
    """Return the text of the rank that has one, on every rank; the own text on a process outside the group.

    A collective call, named `what` in the error of a rank that waits in vain.
    """
    said = Announcement()
    if text is not None:
        said.update(text)
    try:
        values = MetricCollection({what: said}, context, sync_timeout).compute()
    except (RankFailureError, SyncTimeoutError) as error:
        text = f"{error}. This was the making of {what}, a collective call: make it on every rank"
        raise type(error)(text, error.ranks) from None
    return values["text"].markdown if values else text or ""
