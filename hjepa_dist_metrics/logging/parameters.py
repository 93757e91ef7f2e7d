"""A model's parameters under the names that its author gave them, inside any wrapper."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from hjepa_dist_metrics.logging.histograms import TensorHistograms
from hjepa_dist_metrics.parallel import unwrap
from hjepa_dist_metrics.parallel.sharding.fully_sharded import stored_parameters
from hjepa_dist_metrics.values import Histogram

_INNER_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def named_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield names and parameters, the names without those of wrappers."""
    for name, parameter in stored_parameters(unwrap(model)):
        yield ".".join(part for part in name.split(".") if part not in _INNER_WRAPPERS), parameter


def weight_histograms(model: nn.Module) -> dict[str, Histogram]:
    """Return the distribution of every parameter that is whole on this rank, `weights/{name}`."""
    return TensorHistograms({f"weights/{name}": p for name, p in named_parameters(model)}).values()
