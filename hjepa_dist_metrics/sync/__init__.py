"""The sync: one checked reduction of states over ranks."""

from hjepa_dist_metrics.sync.header import Participation as Participation
from hjepa_dist_metrics.sync.manifest import Manifest as Manifest
from hjepa_dist_metrics.sync.merged import Merged as Merged
from hjepa_dist_metrics.sync.report import SyncReport as SyncReport
from hjepa_dist_metrics.sync.session import (
    DEFAULT_SYNC_TIMEOUT as DEFAULT_SYNC_TIMEOUT,
    SyncRequest as SyncRequest,
    SyncResult as SyncResult,
    SyncSession as SyncSession,
)
from hjepa_dist_metrics.sync.thread import (
    SyncHandle as SyncHandle,
    SyncThread as SyncThread,
    drain_syncs as drain_syncs,
)
