"""The names of Lightning that are used here, and what to install where it is missing."""

from __future__ import annotations

from hjepa_dist_metrics.errors import MissingExtraError

try:
    from lightning.pytorch import LightningModule as LightningModule
    from lightning.pytorch.callbacks import Callback as Callback
    from lightning.pytorch.loggers import Logger as Logger
    from lightning.pytorch.utilities import rank_zero_only as rank_zero_only
except ImportError as error:
    raise MissingExtraError("lightning", "lightning", "Measuring Lightning's trainer") from error
