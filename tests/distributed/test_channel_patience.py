"""A rank with nothing to say waits longer for the others than these wait for it."""

import time
from datetime import timedelta

import torch
import torch.distributed as dist

from hjepa_dist_metrics.distributed import connect
from hjepa_dist_metrics.distributed.context import ProcessContext
from hjepa_dist_metrics.distributed.group_channel import group_channel

OWN = 61.0  # seconds; a limit of no other test, so that the channel is this one's


def patient_first_rank() -> list[float]:
    context = ProcessContext.current()
    dist.barrier()
    connect(context, OWN)
    channel = group_channel(None, OWN)
    if context.rank == 0:
        channel._limit = timedelta(seconds=0.2)
    else:
        time.sleep(2.0)  # ten times the first rank's limit
    channel.begin(patient=context.rank == 0)
    return channel.all_gather(torch.tensor([float(context.rank)]))[:, 0].tolist()


def test_a_patient_rank_outwaits_the_limit(gloo):
    assert gloo(2).run(patient_first_rank) == [[0.0, 1.0]] * 2
