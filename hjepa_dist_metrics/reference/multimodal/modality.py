"""What a set of modalities is to the workload: names, encoders, inputs by global sample index."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.multimodal.modalities import modality_names

GLOBAL = "global"


@dataclass(frozen=True)
class Modality:
    """Describe one modality of a user's own data."""

    name: str
    """Name in tags: `embeddings/{name}/mean`."""
    encoder: Callable[[int], nn.Module]
    """Make the encoder for a width: its inputs [B, ...] become [B, width]."""
    inputs: Callable[[Tensor, int], Tensor]
    """Return the encoder's inputs [B, ...] for global sample indices int64 [B] and an epoch, -1 for
    validation. Whatever is random must be drawn by index and epoch, so that every number of ranks sees the
    same."""


@dataclass(frozen=True)
class PairedData:
    """Hold samples that are seen through several modalities: first those to train on, then held-out ones.

    `labels` int64 [N], `captions` [N] and `pictures` uint8 [N, H, W, 3] are there to be shown, over training
    and held-out samples alike, and may be absent. ConfigError where there are not two modalities, or not two
    held-out samples.
    """

    modalities: Sequence[Modality]
    num_train: int
    num_val: int
    labels: Tensor | None = None
    captions: Sequence[str] | None = None
    pictures: npt.NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        names = modality_names([modality.name for modality in self.modalities], least=2)
        if GLOBAL in names or any("." in name for name in names):
            raise ConfigError(
                f"modalities cannot be named {GLOBAL!r}, which is the joint embedding's, nor with a '.', "
                f"got {list(names)}"
            )
        if self.num_val < 2:
            raise ConfigError(
                f"the validation split has {self.num_val} sample(s); to tell pairs apart takes 2 or more"
            )
        total = self.num_train + self.num_val
        for key in ("labels", "captions", "pictures"):
            held = getattr(self, key)
            if held is not None and len(held) != total:
                raise ConfigError(f"expected {key} for {total} samples, got {len(held)}")

    @property
    def names(self) -> list[str]:
        """Return the modalities' names in order."""
        return [modality.name for modality in self.modalities]

    def inputs(self, indices: Tensor, epoch: int) -> Mapping[str, Tensor]:
        """Return the inputs of every modality; ConfigError where one has not a row for each index."""
        batch = {modality.name: modality.inputs(indices, epoch) for modality in self.modalities}
        sizes = {name: len(rows) for name, rows in batch.items()}
        if set(sizes.values()) != {len(indices)}:
            raise ConfigError(f"expected {len(indices)} inputs of every modality, got {sizes}")
        return batch
