"""Entries of speed, memory, the sync itself, and alerts."""

from __future__ import annotations

from functools import partial

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.catalog.limits import OVERHEAD_PERCENT, straggler_limits

_speed = partial(Entry, source="S0 8.1", dashboard="performance")
_system = partial(Entry, source="S1", family="system")
_sync = partial(Entry, dashboard="performance")

_TIMES = {
    "forward_time": "forward pass",
    "backward_time": "backward pass",
    "data_time": "wait for data",
    "optimizer_time": "optimizer step",
    "step_time": "whole step",
}


def _times(name: str, what: str) -> tuple[Entry, ...]:
    clock = "by CUDA events on CUDA, by the host's clock on CPU"
    deviation = "the sketch times the launch of CUDA kernels, on one rank" if what != "whole step" else ""
    return (
        _speed(
            f"performance/{name}_ms",
            f"time of the {what}",
            f"Time of the {what}, mean over steps and ranks, {clock}.",
            unit="ms",
            deviation=deviation,
        ),
        _speed(
            f"performance/{name}_ms_max",
            f"time of the {what} on the slowest rank",
            f"Time of the {what}, mean over steps, largest over ranks.",
            unit="ms",
            healthy=f"near performance/{name}_ms; far above it one rank is slow",
        ),
        _speed(
            f"performance/{name}_ms_max_rank",
            f"slowest rank in the {what}",
            f"Number of the rank behind performance/{name}_ms_max.",
            unit="rank",
            healthy="changes; always the same rank is a slow machine",
            dashboard="",
        ),
    )


def _memory(name: str, what: str) -> tuple[Entry, ...]:
    return (
        _speed(
            f"performance/gpu_memory_{name}_gb",
            f"GPU memory {what}",
            f"GPU memory {what}, largest over ranks.",
            unit="GB",
            healthy="flat; a steady rise is a leak",
        ),
        _speed(
            f"performance/gpu_memory_{name}_gb_rank",
            f"rank with most GPU memory {what}",
            f"Number of the rank behind performance/gpu_memory_{name}_gb.",
            unit="rank",
            dashboard="",
        ),
    )


PERFORMANCE = (
    *(entry for name, what in _TIMES.items() for entry in _times(name, what)),
    _speed(
        "performance/samples_per_second",
        "throughput of the job",
        "Samples of all ranks over the longest rank's elapsed time.",
        unit="samples/s",
        healthy="steady",
        deviation="the sketch reports one rank's samples over its compute time",
    ),
    _speed(
        "performance/tokens_per_second", "token throughput of the job", "The same in tokens.", unit="tokens/s"
    ),
    _speed(
        "performance/total_samples", "samples seen", "Samples of all ranks since the start.", unit="samples"
    ),
    _speed("performance/total_tokens", "tokens seen", "Tokens of all ranks since the start.", unit="tokens"),
    _speed(
        "performance/samples_per_second_total",
        "throughput since the start",
        "Samples of all ranks since the start over the longest rank's time, pauses left out.",
        unit="samples/s",
    ),
    _speed("performance/forward_backward_ratio", "forward over backward", "Forward time over backward time."),
    _speed(
        "performance/mfu",
        "model FLOPs utilisation",
        "Arithmetic of the model per second over the devices' peak.",
        source="arXiv 2204.02311",
        healthy="above 0.3 for large models",
    ),
    _speed(
        "performance/monitor_overhead_percent",
        "cost of monitoring",
        "Share of the step time that the training thread spends in this library.",
        unit="%",
        healthy="below 5",
        bounds=OVERHEAD_PERCENT,
    ),
    _speed(
        "performance/straggler_score",
        "slowest rank's speed",
        "Least median time of a rank's own compute and data over the largest, waits for others left out.",
        healthy="near 1; below 0.75 one rank holds all the others up",
        limits=straggler_limits,
    ),
    _speed("performance/slowest_rank", "slowest rank", "Number of the rank behind the score.", unit="rank"),
    _speed(
        "performance/collective_wait_time_ms",
        "wait for other ranks",
        "Time that a rank waits inside the backward's collectives: beyond the step's shortest backward.",
        unit="ms",
        healthy="small against the step",
        deviation="added",
    ),
    _speed(
        "performance/straggler",
        "straggler",
        "Names the slow rank and whether its compute or its data is slow; written below a score of 0.75.",
        kind="text",
        dashboard="",
        deviation="added",
    ),
    _speed(
        "performance/straggler_map",
        "ranks' own times",
        "A row for each rank, a column for each of the last steps: white as the fastest, red twice as slow.",
        kind="image",
        family="figures",
        dashboard="",
        healthy="white; a red row is a slow rank, a red column a slow step",
        deviation="added",
    ),
    *_memory("allocated", "allocated by tensors"),
    *_memory("reserved", "reserved by the allocator"),
    *_memory("peak", "allocated at the peak"),
)

SYSTEM = (
    _system(
        "system/gpu{rank}_memory_allocated_gb", "allocated GPU memory", "Of this rank's device.", unit="GB"
    ),
    _system(
        "system/gpu{rank}_memory_reserved_gb", "reserved GPU memory", "Of this rank's device.", unit="GB"
    ),
    _system("system/gpu{rank}_utilization", "GPU utilisation", "Of this rank's device.", unit="%"),
    _system(
        "system/gpu{rank}_memory_utilization", "GPU memory utilisation", "Of this rank's device.", unit="%"
    ),
    _system("system/cpu_percent", "CPU utilisation", "Of the machine, mean over ranks.", unit="%"),
    _system("system/ram_gb", "memory", "Used by the ranks' processes, largest over ranks.", unit="GB"),
)

SYNC = (
    _sync(
        "sync/rounds",
        "rounds of a sync",
        "Rounds of messages that the last sync took.",
        healthy="the logarithm of the number of ranks, 2 more at most",
    ),
    _sync("sync/bytes", "bytes of a sync", "Bytes that a rank sent in the last sync.", unit="B"),
    _sync("sync/seconds", "time of a sync", "Time of the last sync on the main process.", unit="s"),
    _sync("sync/wait_seconds", "wait in a sync", "Part of it until the last rank came.", unit="s"),
    _sync("sync/slowest_rank", "last rank to arrive", "Number of the rank that arrived last.", unit="rank"),
)

OTHER = (
    Entry("alerts/{rule}", "alert", "1 while the rule fires, else 0.", healthy="0", dashboard="stability"),
    Entry("alerts/log", "log of alerts", "Every alert with its step, value and bound.", kind="text"),
    Entry("notes/{name}", "notes", "Text on the run: how to read it, its configuration.", kind="text"),
    Entry(
        "training/images/{name}", "training picture", "The same, in a group of its own.", "", "S1", "image"
    ),
    Entry(
        "training/{name}",
        "training picture",
        "Pictures that the training script logs.",
        "",
        "S1",
        "image",
        family="figures",
    ),
)
