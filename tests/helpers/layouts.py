"""One small model under every way of training in parallel, to be compared with a single process.

`backward(layout)` returns a model whose gradients are those of the mean loss over BATCH, held as the layout
holds them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

BATCH, TOKENS, WIDTH = 8, 4, 16


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(self.norm(x))))


class Net(nn.Module):
    """Blocks, a head of uneven width, a frozen part, and a parameter that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(WIDTH, 5)
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        with torch.no_grad():
            for parameter in self.parameters():  # so that no gradient is zero by symmetry
                parameter.copy_(torch.randn(parameter.shape) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.frozen(self.embed(x))
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def data() -> Tensor:
    return torch.randn(BATCH, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))


def loss_of(output: Tensor) -> Tensor:
    return (output * torch.arange(1.0, 6.0)).square().mean()


def reference() -> Net:
    """Return the model of one process that saw the whole batch."""
    net = Net()
    loss_of(net(data())).backward()
    return net


def part(rank: int, ranks: int) -> Tensor:
    return data().chunk(ranks)[rank]


def _step(model: nn.Module, x: Tensor) -> nn.Module:
    loss_of(model(x)).backward()
    return model


def _mine() -> Tensor:
    return part(dist.get_rank(), dist.get_world_size())


def _average_plain(model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Do by hand what DDP does, for parameters that are not DTensors."""
    for parameter in model.parameters():
        if parameter.grad is not None and not isinstance(parameter.grad, DTensor):
            dist.all_reduce(parameter.grad, group=group)
            parameter.grad /= dist.get_world_size(group)


def _average_local(model: nn.Module, group: dist.ProcessGroup) -> None:
    for parameter in model.parameters():
        if parameter.grad is None:
            continue
        local = parameter.grad.to_local() if isinstance(parameter.grad, DTensor) else parameter.grad
        dist.all_reduce(local, group=group)
        local /= dist.get_world_size(group)


def _mesh(*shape: int, names: tuple[str, ...]) -> DeviceMesh:
    return init_device_mesh("cpu", shape, mesh_dim_names=names)


def plain() -> nn.Module:
    return _step(Net(), data())


def ddp() -> nn.Module:
    return _step(DistributedDataParallel(Net()), _mine())


def ddp_static_graph_views() -> nn.Module:
    model = DistributedDataParallel(Net(), static_graph=True, gradient_as_bucket_view=True)
    return _step(model, _mine())


def _two_micro_steps(model: nn.Module, without_sync: Callable[[], None] | None = None) -> nn.Module:
    first, second = _mine().chunk(2)
    with model.no_sync() if hasattr(model, "no_sync") else nullcontext():
        (loss_of(model(first)) / 2).backward()
    if without_sync is not None:
        without_sync()
    (loss_of(model(second)) / 2).backward()
    return model


def ddp_accumulation() -> nn.Module:
    return _two_micro_steps(DistributedDataParallel(Net()))


def _sharded(mesh: DeviceMesh | None = None) -> nn.Module:
    net = Net()
    for block in net.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def fsdp2() -> nn.Module:
    return _step(_sharded(), _mine())


def fsdp2_accumulation() -> nn.Module:
    model = _sharded()
    model.set_requires_gradient_sync(False)
    return _two_micro_steps(model, lambda: model.set_requires_gradient_sync(True))


def fsdp2_not_resharded() -> nn.Module:
    """Leave the units gathered after the backward: the modules show parameters that have no gradients."""
    model = _sharded()
    model.held = list(model.named_parameters())
    model.set_reshard_after_backward(False)
    return _step(model, _mine())


def hsdp() -> nn.Module:
    return _step(_sharded(_mesh(2, dist.get_world_size() // 2, names=("replicate", "shard"))), _mine())


TENSOR_PARALLEL = {
    **{f"blocks.{i}.up": ColwiseParallel() for i in range(2)},
    **{f"blocks.{i}.down": RowwiseParallel() for i in range(2)},
}


def _parallel(mesh: DeviceMesh) -> nn.Module:
    return parallelize_module(Net(), mesh, TENSOR_PARALLEL)


def tensor_parallel() -> nn.Module:
    return _step(_parallel(_mesh(dist.get_world_size(), names=("tp",))), data())


def _spread(x: Tensor, mesh: DeviceMesh) -> Tensor:
    return DTensor.from_local(x, mesh, [Replicate()]).redistribute(mesh, [Shard(1)])


def sequence_parallel() -> nn.Module:
    """Shard the sequence through the norms, whose gradients stay addends."""
    mesh = _mesh(dist.get_world_size(), names=("tp",))
    net = Net()
    for block in net.blocks:
        parallelize_module(
            block,
            mesh,
            {
                "norm": SequenceParallel(),
                "up": ColwiseParallel(input_layouts=Shard(1)),
                "down": RowwiseParallel(),
            },
        )
        block.norm.register_forward_pre_hook(
            lambda module, args: (_spread(args[0], mesh),),
            prepend=True,  # SequenceParallel's own hook takes a plain tensor for this rank's shard
        )
    return _step(net, data())


def fsdp2_tensor_parallel() -> nn.Module:
    mesh = _mesh(2, dist.get_world_size() // 2, names=("dp", "tp"))
    net = _parallel(mesh["tp"])
    for block in net.blocks:
        fully_shard(block, mesh=mesh["dp"])
    fully_shard(net, mesh=mesh["dp"])
    return _step(net, part(mesh["dp"].get_local_rank(), 2))


def ddp_tensor_parallel() -> nn.Module:
    """Replicate a tensor-parallel model: the DTensors' mesh is only a part of the world."""
    mesh = _mesh(2, dist.get_world_size() // 2, names=("dp", "tp"))
    net = _step(_parallel(mesh["tp"]), part(mesh["dp"].get_local_rank(), 2))
    _average_local(net, mesh["dp"].get_group())
    return net


def mixed() -> nn.Module:
    """Shard the blocks; leave the rest whole on every rank."""
    net = Net()
    for block in net.blocks:
        fully_shard(block)
    _step(net, _mine())
    _average_plain(net)
    return net


def _fsdp1(strategy: ShardingStrategy, use_orig_params: bool) -> nn.Module:
    net = Net()
    kwargs = {
        "sharding_strategy": strategy,
        "use_orig_params": use_orig_params,
        "device_id": torch.device("cpu"),
    }
    if strategy is ShardingStrategy.HYBRID_SHARD:
        kwargs["device_mesh"] = _mesh(2, dist.get_world_size() // 2, names=("replicate", "shard"))
    if not use_orig_params:  # a flat parameter is trained or frozen as one
        kwargs["ignored_modules"] = [net.frozen]
    net.blocks[0] = FullyShardedDataParallel(net.blocks[0], **{**kwargs, "ignored_modules": None})
    return _step(FullyShardedDataParallel(net, **kwargs), _mine())


def fsdp1_flat() -> nn.Module:
    return _fsdp1(ShardingStrategy.FULL_SHARD, False)


def fsdp1_original() -> nn.Module:
    return _fsdp1(ShardingStrategy.FULL_SHARD, True)


def fsdp1_no_shard() -> nn.Module:
    return _fsdp1(ShardingStrategy.NO_SHARD, False)


def fsdp1_hybrid() -> nn.Module:
    return _fsdp1(ShardingStrategy.HYBRID_SHARD, True)


def compiled_ddp() -> nn.Module:
    return _step(torch.compile(DistributedDataParallel(Net()), backend="eager"), _mine())


def compiled_fsdp2() -> nn.Module:
    return _step(torch.compile(_sharded(), backend="eager"), _mine())


def accelerate_prepared() -> nn.Module:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    rank, world = str(dist.get_rank()), str(dist.get_world_size())
    launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    with mock.patch.dict(os.environ, launched):
        accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == dist.get_world_size()
    return _step(accelerator.prepare(Net()), _mine())


LAYOUTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (plain, (2, 4)),
    "ddp": (ddp, (2, 4)),
    "ddp_static_graph_views": (ddp_static_graph_views, (2, 4)),
    "ddp_accumulation": (ddp_accumulation, (2, 4)),
    "fsdp2": (fsdp2, (2, 4)),
    "fsdp2_accumulation": (fsdp2_accumulation, (2, 4)),
    "fsdp2_not_resharded": (fsdp2_not_resharded, (2, 4)),
    "hsdp": (hsdp, (2, 4)),
    "tensor_parallel": (tensor_parallel, (2, 4)),
    "sequence_parallel": (sequence_parallel, (2, 4)),
    "fsdp2_tensor_parallel": (fsdp2_tensor_parallel, (2, 4)),
    "ddp_tensor_parallel": (ddp_tensor_parallel, (2, 4)),
    "mixed": (mixed, (2, 4)),
    "fsdp1_flat": (fsdp1_flat, (2, 4)),
    "fsdp1_original": (fsdp1_original, (2, 4)),
    "fsdp1_no_shard": (fsdp1_no_shard, (2, 4)),
    "fsdp1_hybrid": (fsdp1_hybrid, (4,)),
    "compiled_ddp": (compiled_ddp, (2, 4)),
    "compiled_fsdp2": (compiled_fsdp2, (2, 4)),
    "accelerate_prepared": (accelerate_prepared, (2, 4)),
}
CASES = [(name, ranks) for name, (_, worlds) in LAYOUTS.items() for ranks in worlds]


def held_parameters(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the named parameters that an optimizer made at the start holds."""
    return getattr(model, "held", None) or list(model.named_parameters())


def backward(name: str) -> nn.Module:
    return LAYOUTS[name][0]()
