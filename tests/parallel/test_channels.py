"""Channels belong to their process group: they are found again while it lives, and go with it."""

import gc
import weakref

import torch.distributed as dist

from hjepa_dist_metrics.parallel.transport.tree_channel import group_channel
from tests.helpers.processes import run_disposable


def found_again_and_gone(rank: int) -> tuple[bool, bool]:
    """Return whether the channel was found again each time, and whether it was gone with its group."""
    channel = group_channel(None, 5.0)
    channel.connect([1 - rank])
    asked = [(None, 5.0), (dist.group.WORLD, 5.0), (None, 6.0), (None, 5.0)]
    found = [group_channel(group, timeout) is channel for group, timeout in asked]
    known = weakref.ref(channel)
    del channel, asked
    gc.collect()
    assert known() is not None, "the group keeps its channel"
    dist.destroy_process_group()
    gc.collect()
    return found == [True, True, False, True], known() is None


def test_a_channel_is_found_again_and_goes_with_its_group():
    assert run_disposable(2, found_again_and_gone) == dict.fromkeys(range(2), (True, True))
