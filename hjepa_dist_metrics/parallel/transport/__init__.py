"""What carries a sync: one connection for each edge of the tree, and who is at fault where one breaks."""

from hjepa_dist_metrics.parallel.transport.channel import (
    Bytes as Bytes,
    Channel as Channel,
    LinkError as LinkError,
    LocalChannel as LocalChannel,
)
from hjepa_dist_metrics.parallel.transport.memory import (
    MemoryChannel as MemoryChannel,
    MemoryWorld as MemoryWorld,
)
