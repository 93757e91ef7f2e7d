"""The parameters that a gradient metric watches: where they come from, their groups, and that they stay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.parallel.module_tree import ModuleTree
from hjepa_dist_metrics.parallel.sharding.fully_sharded import stored_parameters
from hjepa_dist_metrics.parallel.sharding.parameter_shards import (
    ParameterShard,
    model_shards,
    parameter_shards,
)

Parameters = nn.Module | Tensor | Optimizer | Iterable[Tensor] | Iterable[tuple[str, Tensor]]
Groups = Mapping[str, Iterable[Tensor]]


class TrackedParameters:
    """Hold slots of parameters, and the place of each in the named groups.

    `source` is a model (the only source that tells what FSDP1 made of the parameters), an optimizer,
    parameters, or pairs of names and parameters. `group_of[i]` is the index of slot i's group, the last index
    of all, `len(groups)`, for a slot in none.
    """

    def __init__(self, source: Parameters, groups: Groups | None = None) -> None:
        self._reread: Callable[[], list[Tensor]] | None = _reader(source)
        names, given = (None, self._reread()) if self._reread else _as_list(source)
        self.named = isinstance(source, nn.Module) or names is not None
        self.slots: list[ParameterShard] = (
            model_shards(source) if isinstance(source, nn.Module) else parameter_shards(given, names)
        )
        if not self.slots:
            raise ConfigError("there are no parameters: is the model empty, or the iterator used up?")
        self._identities = [id(parameter) for parameter in given]
        self._held = given  # so that no identity is used twice
        self._tree = ModuleTree(source, given) if isinstance(source, nn.Module) else None
        members = {name: [id(p) for p in parameters] for name, parameters in (groups or {}).items()}
        self.groups = list(members)
        place = {identity: index for index, name in enumerate(members) for identity in members[name]}
        self.group_of = [place.get(id(slot.parameter), len(members)) for slot in self.slots]
        self._require_one_kind_of_device()

    def require_unchanged(self) -> None:
        """Raise ConfigError where the source has other parameters than at the start."""
        if self._reread is None or (self._tree is not None and self._tree.is_unchanged()):
            return
        now = [id(parameter) for parameter in self._reread()]
        if now != self._identities:
            raise ConfigError(
                f"the parameters changed since this metric was made: there were {len(self._identities)}, now "
                f"there are {len(now)}, of which {len(set(now) - set(self._identities))} are new. Make the "
                "metric after the model is complete and wrapped (DDP, fully_shard, ...), or make a new one"
            )

    def _require_one_kind_of_device(self) -> None:
        kinds: dict[str, str] = {}
        for slot in self.slots:
            kinds.setdefault(slot.parameter.device.type, slot.name)
        if len(kinds) > 1:
            listed = ", ".join(f"{name!r} is on {kind}" for kind, name in kinds.items())
            raise ConfigError(
                f"parameters must be on one kind of device, got several: {listed}. Move the model first"
            )


def optimizer_list(optimizers: Optimizer | Sequence[Optimizer]) -> list[Optimizer]:
    """Return the optimizers, given one or several. ConfigError of none, and of what is no optimizer."""
    listed = list(optimizers) if isinstance(optimizers, Sequence) else [optimizers]
    odd = [type(item).__name__ for item in listed if not hasattr(item, "param_groups")]
    if odd or not listed:
        raise ConfigError(f"expected an optimizer or a list of optimizers, got {odd or listed}")
    return listed


def optimizer_groups(optimizers: Optimizer | Sequence[Optimizer]) -> dict[str, list[Tensor]]:
    """Return the parameters of each group: by the group's "name", else "group0", "group1", ... in order.

    Groups of several optimizers are numbered through; of equal names, all but the first get a number.
    """
    found: dict[str, list[Tensor]] = {}
    for group in (group for optimizer in optimizer_list(optimizers) for group in optimizer.param_groups):
        name = str(group.get("name", f"group{len(found)}")).replace("/", ".")
        if name in found:
            name = f"{name}{len(found)}"
        found[name] = list(group["params"])
    return found


def _reader(source: Parameters) -> Callable[[], list[Tensor]] | None:
    if isinstance(source, nn.Module):
        return lambda: [parameter for _, parameter in stored_parameters(source)]
    if isinstance(source, Optimizer):
        return lambda: [parameter for group in source.param_groups for parameter in group["params"]]
    return None


def _as_list(source: Any) -> tuple[list[str] | None, list[Tensor]]:
    given = [source] if isinstance(source, Tensor) else list(source)
    if given and all(isinstance(item, tuple) and len(item) == 2 for item in given):
        return [str(name) for name, _ in given], [parameter for _, parameter in given]
    return None, given
