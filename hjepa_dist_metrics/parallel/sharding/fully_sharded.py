"""What `fully_shard` (FSDP2) made of a model: its units, and its parameters as the optimizer holds them.

A module shows other parameters while its unit is gathered: after a forward, and, where
`set_reshard_after_backward(False)` says so, after the backward. Those have no gradients and keep the values
from before the optimizer's step.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


def fsdp_units(module: nn.Module) -> list[Any]:
    """Return the parameter groups that `fully_shard` made of a module, none where it was not called."""
    if not hasattr(type(module), "_get_fsdp_state"):  # asked of the type, which is quick to say no
        return []
    state = module._get_fsdp_state()  # type: ignore[operator]
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:  # before torch 2.10 a module had one group at most
        group = getattr(state, "_fsdp_param_group", None)
        groups = [] if group is None else [group]
    return list(groups)


def stored_parameters(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the model's named parameters, of gathered units those that the optimizer holds."""
    shards = _shards(model)
    if not shards:
        return list(model.named_parameters())
    found: dict[int, tuple[str, Tensor]] = {}
    for place, module in model.named_modules():
        for name, shown in module._parameters.items():
            parameter = shards.get((id(module), name), shown)
            if parameter is not None:
                found.setdefault(id(parameter), (f"{place}.{name}" if place else name, parameter))
    return list(found.values())


def _shards(model: nn.Module) -> dict[tuple[int, str], Tensor]:
    """Return the sharded parameters of all units, by the module that shows them and their name in it."""
    if "torch.distributed.fsdp" not in sys.modules:
        return {}
    held = [p for module in model.modules() for unit in fsdp_units(module) for p in unit.fsdp_params]
    return {place: parameter.sharded_param for parameter in held for place in _places(parameter)}


def _places(parameter: Any) -> Iterator[tuple[int, str]]:
    info = parameter._module_info
    yield id(info.module), info.param_name
    for module, name in zip(info.shared_modules, info.shared_param_names, strict=True):
        yield id(module), name
