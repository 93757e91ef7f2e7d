"""The sync: one checked, fused exchange of states between ranks."""

from hjepa_dist_metrics.sync.additive import AdditiveSync as AdditiveSync
from hjepa_dist_metrics.sync.background import (
    SyncHandle as SyncHandle,
    SyncThread as SyncThread,
    drain_syncs as drain_syncs,
)
from hjepa_dist_metrics.sync.exchange import SyncReport as SyncReport, exchange as exchange
from hjepa_dist_metrics.sync.frame import Ticket as Ticket
from hjepa_dist_metrics.sync.joining import Part as Part, UnevenError as UnevenError
from hjepa_dist_metrics.sync.merged import MergedStates as MergedStates
from hjepa_dist_metrics.sync.plan import Floats as Floats, Plan as Plan, RowGroup as RowGroup
from hjepa_dist_metrics.sync.snapshot import Snapshot as Snapshot, snapshot as snapshot
