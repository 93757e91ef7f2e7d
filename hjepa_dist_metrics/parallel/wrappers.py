"""Find the user's module inside the wrappers of data parallelism and compilation."""

from __future__ import annotations

from torch import nn

_WRAPPER_ATTRIBUTES = ("module", "_orig_mod")


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module inside DistributedDataParallel and torch.compile wrappers, in any nesting."""
    for name in _WRAPPER_ATTRIBUTES:
        inner = getattr(module, name, None)
        if isinstance(inner, nn.Module):
            return unwrap(inner)
    return module
