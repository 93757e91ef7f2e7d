"""A small model with a tied embedding, experts and two stages, held over ranks in every declared way.

`CASES[name](rank-local arguments)` gives a `Held`: this rank's module with the gradients of one process that
saw the whole batch, its layout, and how to put its pieces together. Nothing here depends on the package's
own way of reading gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from hjepa_dist_metrics import ParallelLayout

WIDTH, EXPERTS, LAYERS = 6, 4, 4


def whole_gradients(tied: bool = False) -> dict[str, Tensor]:
    """Return the gradients of the whole model by name, as one process has them; no two alike."""
    generator = torch.Generator().manual_seed(3)
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (8, WIDTH)}
    for layer in range(LAYERS):
        shapes[f"layers.{layer}.dense.weight"] = (WIDTH, WIDTH)
        shapes[f"layers.{layer}.norm.weight"] = (WIDTH,)
        for expert in range(EXPERTS):
            shapes[f"layers.{layer}.experts.{expert}.weight"] = (2 * WIDTH, WIDTH)
    shapes["head.weight"] = (8, WIDTH)
    scales = torch.linspace(0.5, 2.0, len(shapes))
    found = {
        name: torch.randn(shape, generator=generator) * scale
        for (name, shape), scale in zip(shapes.items(), scales, strict=True)
    }
    if tied:
        del found["head.weight"]
    return found


def whole_values() -> dict[str, Tensor]:
    """Return the parameters' values, before the step."""
    return {name: 3 * gradient.roll(1) + 0.5 for name, gradient in whole_gradients().items()}


@dataclass
class Held:
    """Hold this rank's module, its layout, and the whole model's name of each of its parameters."""

    model: nn.Module
    layout: ParallelLayout | None
    names: dict[str, str] = field(default_factory=dict)

    def gradients(self) -> dict[str, Tensor]:
        """Return this rank's gradients by the whole model's names, DTensors put together."""
        found = {}
        for name, parameter in self.model.named_parameters():
            gradient = parameter.grad
            assert gradient is not None
            full = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
            found[self.names.get(name, name)] = full.detach().clone()
        return found


def build(
    names: dict[str, str], place: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor
) -> nn.Module:
    """Return a module with the parameters `names` (own name to the whole model's), laid out by `place`."""
    gradients, values = whole_gradients(), whole_values()
    model = nn.Module()
    for own, whole in names.items():
        *path, last = own.split(".")
        module = model
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        parameter = nn.Parameter(place(own, values[whole].clone()))
        parameter.grad = place(own, gradients[whole].clone())
        module.register_parameter(last, parameter)
    return model


def mesh_of(shape: Sequence[int], names: Sequence[str]) -> DeviceMesh:
    return init_device_mesh("cpu", tuple(shape), mesh_dim_names=tuple(names))


def all_names(experts: Sequence[int] = range(EXPERTS), layers: Sequence[int] = range(LAYERS)) -> list[str]:
    """Return the names of layers with some of the experts."""
    kept = [f"layers.{layer}." for layer in layers]
    return [
        name
        for name in whole_gradients()
        if any(name.startswith(prefix) for prefix in kept)
        and (".experts." not in name or int(name.split(".")[3]) in experts)
    ]


def stage_names(stage: int, stages: int, experts: Sequence[int] = range(EXPERTS)) -> list[str]:
    """Return the names of one pipeline stage: contiguous layers, the embedding first, the head last."""
    each = LAYERS // stages
    names = all_names(experts, range(stage * each, (stage + 1) * each))
    first = ["embed.weight"] if stage == 0 else []
    return first + names + (["head.weight"] if stage == stages - 1 else [])


def same(names: Sequence[str]) -> dict[str, str]:
    return {name: name for name in names}


def local_experts(names: Sequence[str], coordinate: int, count: int) -> dict[str, str]:
    """Number a rank's experts from 0: own name to the whole model's."""
    found = {}
    for name in names:
        parts = name.split(".")
        if "experts" in parts:
            parts[3] = str(int(parts[3]) - coordinate * count)
        found[".".join(parts)] = name
    return found


def shard(mesh: DeviceMesh, *placements: object) -> Callable[[Tensor], Tensor]:
    return lambda tensor: distribute_tensor(tensor, mesh, list(placements))


def dp() -> Held:
    mesh = mesh_of((4,), ("dp",))
    return Held(build(same(list(whole_gradients()))), ParallelLayout(mesh, data="dp"))


def fsdp() -> Held:
    mesh = mesh_of((4,), ("dp",))
    place = shard(mesh, Shard(0))
    return Held(build(same(list(whole_gradients())), lambda _, t: place(t)), ParallelLayout(mesh))


def hsdp() -> Held:
    mesh = mesh_of((2, 2), ("replicate", "shard"))
    place = shard(mesh, Replicate(), Shard(0))
    return Held(build(same(list(whole_gradients())), lambda _, t: place(t)), ParallelLayout(mesh))


def tp_dp() -> Held:
    mesh = mesh_of((2, 2), ("dp", "tp"))
    place = shard(mesh["tp"], Shard(0))
    model = build(same(list(whole_gradients())), lambda name, t: t if "norm" in name else place(t))
    return Held(model, ParallelLayout(mesh, data="dp", tensor="tp"))


def tp_cp() -> Held:
    mesh = mesh_of((2, 2), ("cp", "tp"))
    place = shard(mesh["tp"], Shard(1))
    model = build(same(list(whole_gradients())), lambda name, t: t if "norm" in name else place(t))
    return Held(model, ParallelLayout(mesh, context="cp", tensor="tp"))


def pp_dp() -> Held:
    mesh = mesh_of((2, 2), ("pp", "dp"))
    names = stage_names(mesh.get_local_rank("pp"), 2)
    return Held(build(same(names)), ParallelLayout(mesh, data="dp", pipeline="pp"))


def pp_inner() -> Held:
    """Let neighbouring ranks be stages: the mesh's order is the other one."""
    mesh = mesh_of((2, 2), ("dp", "pp"))
    names = stage_names(mesh.get_local_rank("pp"), 2)
    return Held(build(same(names)), ParallelLayout(mesh, pipeline="pp"))


def pp_fsdp() -> Held:
    mesh = mesh_of((2, 2), ("pp", "dp"))
    place = shard(mesh["dp"], Shard(0))
    model = build(same(stage_names(mesh.get_local_rank("pp"), 2)), lambda _, t: place(t))
    return Held(model, ParallelLayout(mesh, pipeline="pp"))


def pp_four_tied() -> Held:
    """Hold the embedding on the first and the last of four stages, the head's gradient being in it."""
    mesh = mesh_of((4,), ("pp",))
    stage = mesh.get_local_rank("pp")
    names = same([name for name in stage_names(stage, 4) if name != "head.weight"])
    if stage == 3:
        names["head.weight"] = "embed.weight"
    layout = ParallelLayout(mesh, pipeline="pp", shared={"head.weight": "embed.weight"})
    return Held(build(names), layout, names)


def _experts(mesh: DeviceMesh, stage_of: Sequence[str]) -> dict[str, str]:
    each = EXPERTS // 2
    ep = mesh.get_local_rank("ep")
    held = range(ep * each, (ep + 1) * each)
    names = [n for n in stage_of if ".experts." not in n or int(n.split(".")[3]) in held]
    return local_experts(names, ep, each)


def ep_dp() -> Held:
    mesh = mesh_of((2, 2), ("ep", "dp"))
    names = _experts(mesh, list(whole_gradients()))
    return Held(build(names), ParallelLayout(mesh, data="dp", expert={r"experts\.": "ep"}), names)


def ep_submesh() -> Held:
    """Shard dense parameters over all ranks, experts over those that hold the same ones."""
    mesh = mesh_of((2, 2), ("ep", "dp"))
    names = _experts(mesh, list(whole_gradients()))
    dense, experts = shard(mesh, Shard(0), Shard(0)), shard(mesh["dp"], Shard(0))
    model = build(names, lambda name, t: experts(t) if "experts" in name else dense(t))
    return Held(model, ParallelLayout(mesh, expert={r"experts\.": "ep"}), names)


def pp_ep() -> Held:
    mesh = mesh_of((2, 2), ("pp", "ep"))
    names = _experts(mesh, stage_names(mesh.get_local_rank("pp"), 2))
    return Held(build(names), ParallelLayout(mesh, pipeline="pp", expert={r"experts\.": "ep"}), names)


def pp_dp_of_groups() -> Held:
    """Declare by process groups, where there is no mesh."""
    rank = dist.get_rank()
    pairs = {name: [dist.new_group(ranks) for ranks in lists] for name, lists in _PAIRS.items()}
    groups = {"pp": pairs["pp"][rank % 2], "dp": pairs["dp"][rank // 2]}
    layout = ParallelLayout.of_groups(groups, pipeline="pp")
    return Held(build(same(stage_names(rank // 2, 2))), layout)


_PAIRS = {"pp": [[0, 2], [1, 3]], "dp": [[0, 1], [2, 3]]}

CASES: dict[str, Callable[[], Held]] = {
    case.__name__: case
    for case in (
        dp,
        fsdp,
        hsdp,
        tp_dp,
        tp_cp,
        pp_dp,
        pp_inner,
        pp_fsdp,
        pp_four_tied,
        ep_dp,
        ep_submesh,
        pp_ep,
        pp_dp_of_groups,
    )
}
UNDECLARED = ("pp_dp", "pp_fsdp", "ep_dp", "ep_submesh", "pp_ep")
