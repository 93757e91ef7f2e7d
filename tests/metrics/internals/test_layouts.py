"""Activations and attention of a model that lies over ranks are those of one process."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from hjepa_dist_metrics import ActivationStatistics, AttentionStatistics, MetricCollection, ParallelLayout
from hjepa_dist_metrics.values import Scalar
from tests.helpers.layouts import Block, Net, data, loss_of, part
from tests.helpers.models import FusedOrNot


def numbers(metric) -> dict[str, float]:
    values = MetricCollection({"metric": metric}).compute()
    return {tag: value.value for tag, value in values.items() if isinstance(value, Scalar)}


def watched(model, x) -> dict[str, float]:
    metric = ActivationStatistics(model, [r"blocks\.\d"], gradients=True, per_block=True)
    for _ in range(2):  # the second time with what the first pass has set up
        metric.reset()
        with metric.watching():
            loss_of(model(x)).backward()
    return numbers(metric)


def wrapped(kind: str) -> nn.Module:
    net: nn.Module = Net()
    if "checkpointed" in kind:
        reentrant = CheckpointImpl.REENTRANT if "reentrant" in kind else CheckpointImpl.NO_REENTRANT
        apply_activation_checkpointing(
            net,
            checkpoint_wrapper_fn=lambda block: checkpoint_wrapper(block, reentrant),
            check_fn=lambda module: isinstance(module, Block),
        )
    if "fsdp2" in kind:
        for block in net.blocks:
            fully_shard(block)
        return fully_shard(net)
    return DistributedDataParallel(net)


def of_ranks(kind: str) -> dict[str, float]:
    return watched(wrapped(kind), part(dist.get_rank(), dist.get_world_size()))


KINDS = ["ddp", "ddp, checkpointed", "fsdp2", "fsdp2, checkpointed", "fsdp2, checkpointed reentrant"]


@pytest.mark.parametrize("kind", KINDS)
def test_data_parallel_ranks_give_the_numbers_of_one_process(gloo, kind):
    # every rank's loss is the mean over its own samples: gradients of outputs are twice as large
    alone = watched(Net(), data())
    for found in gloo(2).run(of_ranks, kind):
        assert found.keys() == alone.keys()
        for tag, expected in alone.items():
            scale = 2.0 if tag.startswith("activation_gradient") and "zero" not in tag else 1.0
            assert found[tag] == pytest.approx(scale * expected, rel=1e-4, abs=1e-12), tag


def in_half_precision() -> dict[str, float]:
    net = Net()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    for block in net.blocks:
        fully_shard(block, mp_policy=policy)
    return watched(fully_shard(net, mp_policy=policy), part(dist.get_rank(), dist.get_world_size()))


def test_fsdp_in_half_precision_is_near(gloo):
    alone = watched(Net(), data())
    one, other = gloo(2).run(in_half_precision)
    assert one == other
    for name in ("blocks.0_rms", "blocks.1_rms", "blocks.1_kurtosis"):
        assert one[f"activation/{name}"] == pytest.approx(alone[f"activation/{name}"], rel=0.03)


def of_dtensors(placement) -> dict[str, float]:
    """Return the numbers of outputs that are DTensors: cut along their units, or copies."""
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    net = Net()
    plan = ColwiseParallel(output_layouts=placement, use_local_output=False)
    parallelize_module(net, mesh, {"embed": plan})
    metric = ActivationStatistics(net, ["embed"], per_block=True)
    with metric.watching():
        net.embed(data())
    return numbers(metric)


@pytest.mark.parametrize("placement", [Shard(-1), Replicate(), Shard(0)], ids=str)
def test_outputs_that_are_dtensors_count_once(gloo, placement):
    net = Net()
    metric = ActivationStatistics(net, ["embed"], per_block=True)
    with metric.watching():
        net.embed(data())
    alone = numbers(metric)
    for found in gloo(2).run(of_dtensors, placement):
        assert found == pytest.approx(alone, rel=1e-5)


def of_head_shares() -> dict[str, float]:
    """Each tensor-parallel rank has two of four heads, and each data rank half of the samples."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    layout = ParallelLayout(mesh, data="dp", tensor="tp")
    q, k = heads()
    metric = AttentionStatistics(nn.Linear(1, 1), layout=layout)
    tp, dp = mesh.get_local_rank("tp"), mesh.get_local_rank("dp")
    metric.update(*(t.chunk(2)[dp].chunk(2, dim=1)[tp] for t in (q, k)), layer="attn")
    return numbers(metric)


def heads():
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(4, 4, 9, 8, generator=generator)
    q = q * torch.tensor([1.0, 2.0, 4.0, 8.0])[:, None, None]
    return q, torch.randn(4, 4, 9, 8, generator=generator)


def test_heads_of_tensor_parallel_ranks_are_numbered_through(gloo):
    metric = AttentionStatistics(nn.Linear(1, 1))
    metric.update(*heads(), layer="attn")
    alone = metric.compute()
    assert alone["attention/largest_logit"].markdown.startswith("`attn`, head 3")
    for found in gloo(4).run(of_head_shares):
        assert found == pytest.approx({tag: alone[tag] for tag in found}, rel=1e-6)
        assert len(found) == 9


def of_attention(rank_part: bool) -> dict[str, float]:
    torch.manual_seed(0)
    model = nn.Sequential(FusedOrNot(16, 2), FusedOrNot(16, 2))
    if rank_part:
        for block in model:
            fully_shard(block)
        fully_shard(model)
    metric = AttentionStatistics(model)
    with metric.watching():
        model(part(dist.get_rank(), 2) if rank_part else data())
    return numbers(metric)


def test_attention_under_fsdp_is_that_of_one_process(gloo):
    torch.manual_seed(0)
    alone = of_attention(False)
    for found in gloo(2).run(of_attention, True):
        assert found == pytest.approx(alone, rel=1e-5)
