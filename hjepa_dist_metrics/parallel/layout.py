"""How a model lies over the ranks of a job, as its owner declares it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from typing_extensions import Self

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.parallel.rank_grid import RankGrid

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

Dims = str | Sequence[str] | None
# A copy's name to the name of what it is a copy of, or names that are the same on several stages.
Shared = Mapping[str, str] | Iterable[str]


@dataclass(frozen=True, eq=False)
class ParallelLayout:
    r"""Declare what the dimensions of a mesh mean, by their names, as torchtitan's meshes have them.

        mesh = init_device_mesh("cuda", (2, 4), mesh_dim_names=("pp", "dp"))
        layout = ParallelLayout(mesh, pipeline="pp")

    `pipeline` ranks hold different layers; only those that have a loss or features hand them over. `tensor`
    ranks see the same samples, `context` ranks other tokens of the same samples. `data` ranks see other
    samples: by default all dimensions that are nothing else. `expert` maps a regular expression, found in a
    parameter's name, to the dimensions along which ranks hold different parameters of that name:
    `{r"experts\.": "ep"}`; unless they are named otherwise, these too see other samples. `shared` names
    parameters that several pipeline stages hold alike, tied embeddings: `{"head.weight": "embed.weight"}`,
    or `{"embed.weight"}` where the names are the same; they count once, and must hold the same gradient.

    What DTensors say of themselves need not be declared. Each dimension may be several, as a sequence. Where
    there is no mesh, `of_groups` takes process groups.
    """

    mesh: DeviceMesh | RankGrid
    data: Dims = None
    pipeline: str | None = None
    tensor: Dims = None
    context: Dims = None
    expert: Mapping[str, Dims] = field(default_factory=dict)
    shared: Shared = ()
    grid: RankGrid = field(init=False, repr=False)

    def __post_init__(self) -> None:
        grid = self.mesh if isinstance(self.mesh, RankGrid) else RankGrid.of_mesh(self.mesh)
        object.__setattr__(self, "grid", grid)
        roles = {role: as_names(getattr(self, role)) for role in ("data", "pipeline", "tensor", "context")}
        roles |= {f"expert[{pattern!r}]": as_names(dims) for pattern, dims in self.expert.items()}
        for role, names in roles.items():
            if odd := [name for name in names if name not in grid.names]:
                raise ConfigError(f"the mesh has the dimensions {list(grid.names)}, got {role}={odd}")
        given = [name for role in ("data", "pipeline", "tensor", "context") for name in roles[role]]
        if twice := sorted({name for name in given if given.count(name) > 1}):
            raise ConfigError(f"a dimension has one meaning, but {twice} have several: {roles}")

    @classmethod
    def of_groups(
        cls,
        groups: Mapping[str, ProcessGroup],
        data: Dims = None,
        pipeline: str | None = None,
        tensor: Dims = None,
        context: Dims = None,
        expert: Mapping[str, Dims] | None = None,
        shared: Shared = (),
    ) -> Self:
        """Declare a layout by this rank's group along each named dimension. A collective call."""
        grid = RankGrid.of_groups(groups)
        return cls(grid, data, pipeline, tensor, context, expert or {}, shared)

    @property
    def group(self) -> ProcessGroup:
        """Return the group of all ranks."""
        return self.grid.group

    @property
    def stage(self) -> int:
        """Return this rank's pipeline coordinate; 0 without pipelines."""
        return self.grid.coordinate(self.pipeline) if self.pipeline else 0

    @property
    def expert_dims(self) -> list[str]:
        """Return the dimensions along which experts differ."""
        return list(dict.fromkeys(dim for dims in self.expert.values() for dim in as_names(dims)))

    def differs_along(self, name: str) -> frozenset[str]:
        """Return the dimensions but the pipeline's along which ranks hold other parameters of this name."""
        found = [as_names(dims) for pattern, dims in self.expert.items() if re.search(pattern, name)]
        return frozenset(dim for dims in found for dim in dims)

    def original(self, name: str) -> str | None:
        """Return the name under which a shared parameter counts; None of one that is not shared."""
        names = self.shared if isinstance(self.shared, Mapping) else {name: name for name in self.shared}
        if name in names:
            return names[name]
        return name if name in names.values() else None

    @property
    def adds_rows(self) -> bool:
        """Return whether this rank's losses and features count: tensor-parallel ranks hold them alike."""
        return self._is_first(as_names(self.tensor))

    @property
    def adds_samples(self) -> bool:
        """Return whether this rank's samples count, which all stages and parts of a sequence share."""
        return self.adds_tokens and self._is_first(as_names(self.context))

    @property
    def adds_tokens(self) -> bool:
        """Return whether this rank's tokens count, which all stages share."""
        return self.adds_rows and self.stage == 0

    @property
    def splits_sequences(self) -> bool:
        """Return whether ranks hold other tokens of the same samples."""
        return bool(as_names(self.context))

    def _is_first(self, names: Sequence[str]) -> bool:
        return all(self.grid.coordinate(name) == 0 for name in names)


def as_names(dims: Dims) -> tuple[str, ...]:
    """Return dimension names as a tuple."""
    if dims is None:
        return ()
    return (dims,) if isinstance(dims, str) else tuple(dims)
