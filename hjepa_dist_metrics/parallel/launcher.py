"""What the environment says of how this process was started."""

from __future__ import annotations

import os
from collections.abc import Mapping

# One of them is set in each process of a job: by torchrun and accelerate, Intel's, Open, MVAPICH2's MPI.
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def lost_processes(environment: Mapping[str, str] | None = None) -> str | None:
    """Return what to say where `accelerate launch` was asked for several processes and started one.

    On CPUs it leaves starting them to mpirun: `--cpu --num_processes 2` is one process, which trains alone.
    """
    found = os.environ if environment is None else environment
    launched = "ACCELERATE_MIXED_PRECISION" in found and "MASTER_ADDR" in found
    if not launched or any(name in found for name in _RANKS):
        return None
    return (
        "accelerate launch was asked for several processes and started one: on CPUs it leaves the others to "
        "mpirun. Start them with torchrun --nproc-per-node N, or by a config file whose distributed_type is "
        "MULTI_GPU, which needs no GPU where the script makes Accelerator(cpu=True)"
    )
