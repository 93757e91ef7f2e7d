"""A model's parameters under the names that its author gave them, whatever it is wrapped in."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

_WRAPPERS = ("module", "_orig_mod")
_INNER_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside DistributedDataParallel and torch.compile, in any nesting."""
    for name in _WRAPPERS:
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module) and len(list(model.children())) == 1:
            return unwrap(inner)
    return model


def named_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield names and parameters, the names without those of wrappers."""
    for name, parameter in unwrap(model).named_parameters():
        yield ".".join(part for part in name.split(".") if part not in _INNER_WRAPPERS), parameter
