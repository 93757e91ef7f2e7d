"""A model's parameters under the names that its author gave them, whatever it is wrapped in."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from hjepa_dist_metrics.distributed import unwrap

_INNER_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def named_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield names and parameters, the names without those of wrappers."""
    for name, parameter in unwrap(model).named_parameters():
        yield ".".join(part for part in name.split(".") if part not in _INNER_WRAPPERS), parameter
