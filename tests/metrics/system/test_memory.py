import mmap
import os
import sys

import pytest
import torch

from hjepa_dist_metrics import Memory, MemoryGrowth, MetricCollection
from hjepa_dist_metrics.metrics.system import memory as memory_module
from tests.helpers.ranks import run_ranks

NAN = float("nan")


def numbers(values):
    return {tag: float(value) for tag, value in values.items()}


def test_every_rank_has_its_tags_and_the_largest_is_named():
    rows = [
        [1.0, 2.0, 3.0, 40.0, 5.0, 50.0, 0.5],
        [1.5, 2.5, 2.0, 90.0, 6.0, 70.0, 0.7],
        [NAN] * 5 + [NAN, 0.6],
    ]

    def body(context):
        memory = Memory()
        memory.usage.update(rows[context.rank])
        return numbers(MetricCollection({"m": memory}, context).compute())

    for values in run_ranks(3, body):
        assert values["system/gpu0_memory_allocated_gb"] == 1.0
        assert values["system/gpu1_memory_reserved_gb"] == 2.5
        assert values["system/gpu1_utilization"] == 90.0
        assert values["system/gpu0_memory_utilization"] == 5.0
        assert not any(tag.startswith("system/gpu2") for tag in values)
        assert (
            values["performance/gpu_memory_allocated_gb"],
            values["performance/gpu_memory_allocated_gb_rank"],
        ) == (1.5, 1)
        assert (values["performance/gpu_memory_peak_gb"], values["performance/gpu_memory_peak_gb_rank"]) == (
            3.0,
            0,
        )
        assert values["system/cpu_percent"] == 60.0
        assert values["system/ram_gb"] == 0.7


def resident_now():
    """Ask the kernel by another road than the metric's."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024 / 1e9


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc to compare with")
@pytest.mark.parametrize("with_psutil", [True, False])
def test_this_process(monkeypatch, with_psutil):
    if not with_psutil:
        monkeypatch.setitem(sys.modules, "psutil", None)
    memory = Memory()
    assert memory.compute() == {}
    memory.update()
    values = numbers(memory.compute())
    assert values["system/ram_gb"] == pytest.approx(resident_now(), rel=0.1)
    assert ("system/cpu_percent" in values) == with_psutil


def test_utilization_that_cannot_be_read_is_reported_once_and_left_out(monkeypatch, caplog):
    def refuse(device):
        raise ModuleNotFoundError("no nvidia-ml-py")

    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    for name, value in {"memory_allocated": 2e9, "memory_reserved": 3e9, "max_memory_allocated": 4e9}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(memory_module, "_device", lambda device: torch.device("cuda", 0))
    memory = Memory()
    memory.update()
    memory.update()
    values = numbers(memory.compute())
    assert values["system/gpu0_memory_allocated_gb"] == 2.0
    assert values["performance/gpu_memory_peak_gb"] == 4.0
    assert "system/gpu0_utilization" not in values
    assert len(caplog.records) == 1


def test_what_grows_is_the_largest_over_ranks():
    def body(context):
        growth = MemoryGrowth()
        growth.resident.update([2.0, 5.0, 3.0][context.rank])
        if context.rank:
            growth.allocated.update([0.0, 1.0, 4.0][context.rank])
        return numbers(MetricCollection({"m": growth}, context).compute())

    tag = "performance/gpu_memory_allocated_gb"
    assert run_ranks(3, body) == [{"system/ram_gb": 5.0, tag: 4.0, f"{tag}_rank": 2.0}] * 3


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc to compare with")
def test_memory_that_grows_is_seen_to_grow():
    growth, sizes = MemoryGrowth(), []
    for _ in range(2):
        growth.reset()
        growth.update()
        sizes.append(numbers(growth.compute())["system/ram_gb"])
        assert sizes[-1] == pytest.approx(resident_now(), rel=0.1)
        held = mmap.mmap(-1, 100_000_000)  # pages of its own, never ones that another test has freed
        held.write(bytes(len(held)))
    assert sizes[1] - sizes[0] == pytest.approx(len(held) / 1e9, rel=0.5)


def test_what_grows_is_written_by_one_metric_only():
    memory = Memory(growing=False)
    memory.usage.update([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.7])
    tags = set(memory.compute())
    assert not {"system/ram_gb", "performance/gpu_memory_allocated_gb"} & tags
    assert {"system/cpu_percent", "system/gpu0_memory_allocated_gb", "performance/gpu_memory_peak_gb"} <= tags
