"""Activations of a model's blocks: size, outliers, shape of the distribution, units that say nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import Tensor, nn

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.metrics.internals.activation_summary import (
    BlockNumbers,
    block_numbers,
    per_block_tags,
    summary_tags,
)
from hjepa_dist_metrics.metrics.internals.hooks import (
    Hooks,
    Run,
    is_repeated_or_compiled,
    output_hooks,
    run_always,
)
from hjepa_dist_metrics.metrics.internals.units import Units, units_of
from hjepa_dist_metrics.metrics.kernels.units import unit_statistics
from hjepa_dist_metrics.metrics.validation import described
from hjepa_dist_metrics.parallel import ParallelLayout
from hjepa_dist_metrics.parallel.module_names import chosen_modules
from hjepa_dist_metrics.states import FourthMoments, NamedRows, UnitRanges

# Groups of tags.
_GROUPS = {"activation": "activation", "gradient": "activation_gradient"}


class ActivationStatistics(DistributedMetric):
    r"""Describe the outputs of a model's blocks, over all rows of all ranks, and where asked their gradients.

    `modules` are names of modules or regular expressions of whole names; by default the blocks, which are
    what lies in lists of modules that are alike. Of each block: the root mean square of all elements, the
    largest magnitude, the kurtosis n sum (x - m)^4 / (sum (x - m)^2)^2 (3 of a Gaussian), the fraction of
    zeros, dead units, which have the same value in every row, and the outlier ratio, the largest root mean
    square of a unit over the median of all units.

    Tags under `activation/`: the lowest, the median and the highest of these over the blocks, `nonfinite`
    elements, and as texts which block and unit is the largest (`largest`), which blocks have dead units
    (`dead`), and the `first_nonfinite` block. `per_block` adds `{module}_rms` and so on. Of gradients:
    `activation_gradient/`, those of the scaled loss under a GradScaler.

    Units are along the last dimension, of convolutions and what is between them along the second. All forward
    passes in the body count, of micro-batches too; padding counts. The second forward of activation
    checkpointing does not; compiled models run eagerly in the body. `update` takes outputs by name
    instead. With a `layout`, ranks whose outputs are copies add nothing. ConfigError, with the nearest names,
    for a pattern that matches no module.

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> _ = nn.init.constant_(model[0].bias[:5], -100.0)
    >>> statistics = ActivationStatistics(model, ["1"])
    >>> with statistics.watching():  # hooks are on the model in the body alone
    ...     output = model(torch.randn(64, 3))
    >>> statistics.compute()["activation/dead"].markdown
    '`1`: 5 of 8'
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Sequence[str] | None = None,
        *,
        gradients: bool = False,
        per_block: bool = False,
        layout: ParallelLayout | None = None,
    ) -> None:
        self.model, self.modules = model, modules
        self.gradients, self.per_block = gradients, per_block
        self._adds = layout is None or layout.adds_rows
        self._hooks = Hooks()
        if layout is None or layout.pipeline is None:  # a stage has a part of the modules
            chosen_modules(model, modules)
        self._kinds = ("activation", "gradient") if gradients else ("activation",)
        for kind in self._kinds:
            self.add_state(f"{kind}_units", NamedRows(UnitRanges))
            self.add_state(f"{kind}_elements", NamedRows(FourthMoments))

    def watching(self) -> AbstractContextManager[None]:
        """Have hooks on the modules during the body, and look at what they return."""
        return self._hooks.during(partial(self.hooks, [self]))

    def hooks(self, metrics: Sequence[ActivationStatistics], run: Run = run_always) -> Iterator[Any]:
        """Add hooks that hand outputs to `metrics`, made for the same modules, and yield their handles.

        `run` runs their updates.
        """
        try:
            modules = chosen_modules(self.model, self.modules)
        except ConfigError:
            modules = {}  # another pipeline stage has them
        yield from output_hooks(modules, lambda *seen: _see(metrics, run, *seen))

    def update(
        self,
        activations: Mapping[str, Tensor] | None = None,
        gradients: Mapping[str, Tensor] | None = None,
        units: Mapping[str, int] | None = None,
    ) -> None:
        """Add outputs of blocks by name, and gradients of outputs; `units` are the dimensions of units.

        The last dimension by default. ConfigError for what is no tensor of floats.
        """
        if gradients and not self.gradients:
            raise ConfigError("gradients are handed over, but not asked for: give gradients=True")
        for kind, tensors in (("activation", activations), ("gradient", gradients)):
            for name, tensor in (tensors or {}).items():
                if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                    raise ConfigError(f"{kind} {name!r} must be a tensor of floats, got {described(tensor)}")
                self._add(kind, name, units_of(tensor, -1 if units is None else units.get(name, -1)))

    def _add(self, kind: str, name: str, seen: Units | None) -> None:
        if seen is None or not self._adds:
            return
        units, elements = unit_statistics(seen.rows)
        self.states[f"{kind}_units"].update(name, seen.placed(units))
        self.states[f"{kind}_elements"].update(name, elements)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tags; {} before the first update."""
        tags: dict[str, Any] = {}
        for group, blocks in self.blocks(states).items():
            of_gradients = group == _GROUPS["gradient"]
            tags |= summary_tags(group, blocks, gradients=of_gradients)
            if self.per_block:
                tags |= per_block_tags(group, blocks, gradients=of_gradients)
        return tags

    def blocks(self, states: Mapping[str, Any]) -> dict[str, list[BlockNumbers]]:
        """Return the numbers of the blocks by group of tags, without groups that have seen nothing."""
        kinds = [kind for kind in self._kinds if len(states[f"{kind}_units"])]
        return {
            _GROUPS[kind]: block_numbers(states[f"{kind}_units"], states[f"{kind}_elements"])
            for kind in kinds
        }


def _see(
    metrics: Sequence[ActivationStatistics], run: Run, name: str, module: nn.Module, output: Tensor
) -> None:
    """Hand an output to metrics, and its gradient when that is known."""
    units = {name: unit_dimension(module, output)}
    if not is_repeated_or_compiled():
        for metric in metrics:
            run(partial(metric.update, {name: output}, units=units))
    watched = [metric for metric in metrics if metric.gradients]
    # Also in the second forward of activation checkpointing: the reentrant one has no gradients in the first.
    if watched and output.requires_grad:

        def look(gradient: Tensor) -> None:
            for metric in watched:
                run(partial(metric.update, gradients={name: gradient}, units=units))

        output.register_hook(look)  # type: ignore[no-untyped-call]


def unit_dimension(module: nn.Module, output: Tensor) -> int:
    """Return along which dimension of a module's output its units lie."""
    convolutions = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
    if output.ndim < 3:
        return -1
    if output.ndim == 3:
        return 1 if isinstance(module, convolutions) else -1
    inside = list(module.modules())
    if any(isinstance(part, convolutions) for part in inside):
        return 1
    return -1 if any(isinstance(part, (nn.Linear, nn.LayerNorm)) for part in inside) else 1
