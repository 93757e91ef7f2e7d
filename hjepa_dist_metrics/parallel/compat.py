"""Every private or new name of torch that the package uses, with the version that brought it.

Each has a test in `tests/parallel/test_compat.py`: a torch that lacks one fails there and says which.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore


def any_autocast() -> bool:
    """Return whether autocast is on for any kind of device: `_is_any_autocast_enabled` (torch 1.13)."""
    return bool(torch._C._is_any_autocast_enabled())


def in_backward() -> bool:
    """Return whether a backward pass is running on this thread: `_current_graph_task_id` (torch 1.13)."""
    if torch.compiler.is_compiling():  # of the forward pass
        return False
    return int(torch._C._current_graph_task_id()) != -1


def ignored_by_ddp(module: nn.Module) -> Iterable[str]:
    """Return names of parameters and buffers that DDP leaves alone: `_ddp_params_and_buffers_to_ignore`."""
    names: Iterable[str] = getattr(module, "_ddp_params_and_buffers_to_ignore", ())
    return names


def pair_group(store: Store, place: int, timeout: float) -> Any:
    """Return a gloo group of two ranks, connected: `ProcessGroupGloo._Options` (torch 1.8)."""
    gloo: Any = dist.ProcessGroupGloo
    options = gloo._Options()
    options._devices = [_device(os.getpid())]
    options._threads = 1
    options._timeout = timedelta(seconds=timeout)
    return gloo(store, place, 2, options)


@functools.lru_cache(maxsize=1)
def _device(process: int) -> Any:
    """Return the network device that all groups of a process share; a fork makes its own."""
    interface = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0]
    if interface:
        return dist.ProcessGroupGloo.create_device(interface=interface)
    return dist.ProcessGroupGloo.create_default_device()


def prefixed(prefix: str, store: Store) -> Store:
    """Return a store whose keys get a prefix (`PrefixStore`)."""
    return PrefixStore(prefix, store)


def job_store() -> Store:
    """Return the key-value store of the job: `_get_default_store` (torch 1.11)."""
    store: Store = dist.distributed_c10d._get_default_store()
    return store


def own_connection(store: Store, timeout: float) -> Store:
    """Return a connection of our own to a store, where it can be had (`Store.clone`, torch 2.7).

    A wait on a shared one blocks its other users. Raises RuntimeError where the store is gone, and lets later
    calls do so after `timeout` seconds.
    """
    store.check(["hjepa_dist_metrics"])  # at once where the store is gone; `clone` would go on trying
    if not hasattr(store, "clone"):
        return store
    own: Store = store.clone()
    own.set_timeout(timedelta(seconds=timeout))
    return own


def underlying(store: Store) -> Store:
    """Return the store below all prefixes."""
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    return store


def hosts_store(store: Store) -> bool:
    """Return whether this process serves a store; its client alone does not say."""
    server = underlying(store)
    return isinstance(server, TCPStore) and "server=TCPServer" in repr(server)


class ReducerTimes(NamedTuple):
    """Hold what DistributedDataParallel measured of one backward: its number, and seconds."""

    iteration: int
    communication: float  # from the first bucket's reduction to the end of the last
    overlap: float  # the part of it during which this rank still computed


def ddp_times(ddp: Any) -> ReducerTimes | None:
    """Return the reducer's times of the last measured backward: `_get_ddp_logging_data` (torch 1.9).

    They are those of the backward before the last forward; None before there are any.
    """
    data = ddp._get_ddp_logging_data()
    names = "backward_comm_time", "backward_compute_comm_overlap_time"
    if not data.get(names[0]):
        return None
    communication, overlap = (float(data.get(name, 0)) / 1e9 for name in names)
    return ReducerTimes(int(data["iteration"]), communication, overlap)


def sample_ddp_times(ddp: Any, every: bool) -> None:
    """Have the reducer measure every backward, or one in a hundred as it does by itself (torch 1.9)."""
    ddp._set_ddp_runtime_logging_sample_rate(1 if every else 100)
