"""A rank with nothing to say waits longer for the others than these wait for it."""

import time

import torch
import torch.distributed as dist

from hjepa_dist_metrics.distributed import connect, open_channel
from hjepa_dist_metrics.distributed.context import ProcessContext

LIMIT = 4.0


def patient_first_rank() -> list[float]:
    context = ProcessContext.current()
    dist.barrier()
    connect(context, LIMIT)
    channel = open_channel(context, LIMIT)
    if context.rank == 1:
        time.sleep(1.5 * LIMIT)  # the first rank's limit passes; this one finds it waiting
    channel.begin(patient=context.rank == 0)
    return channel.all_gather(torch.tensor([float(context.rank)]))[:, 0].tolist()


def test_a_patient_rank_outwaits_the_limit(gloo):
    assert gloo(2).run(patient_first_rank) == [[0.0, 1.0]] * 2
