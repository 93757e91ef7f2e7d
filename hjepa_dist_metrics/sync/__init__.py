"""The sync: one checked, fused exchange of states between ranks."""

from hjepa_dist_metrics.sync.background import SyncHandle as SyncHandle
from hjepa_dist_metrics.sync.background import SyncThread as SyncThread
from hjepa_dist_metrics.sync.exchange import (
    SyncReport as SyncReport,
)
from hjepa_dist_metrics.sync.exchange import (
    Ticket as Ticket,
)
from hjepa_dist_metrics.sync.exchange import (
    exchange as exchange,
)
from hjepa_dist_metrics.sync.snapshot import Snapshot as Snapshot
from hjepa_dist_metrics.sync.snapshot import snapshot as snapshot
