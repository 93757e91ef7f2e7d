"""The sync: one checked, fused exchange of states between ranks."""

from hjepa_dist_metrics.sync.background import SyncHandle as SyncHandle, SyncThread as SyncThread
from hjepa_dist_metrics.sync.exchange import (
    SyncReport as SyncReport,
    Ticket as Ticket,
    exchange as exchange,
)
from hjepa_dist_metrics.sync.snapshot import Snapshot as Snapshot, snapshot as snapshot
