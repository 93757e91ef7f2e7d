"""Features of a model's modules, found by the modules' names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.parallel import unwrap

# One module, several, or several under names of their own.
WatchFeatures = str | Sequence[str] | Mapping[str, str] | None

# Parts of names that wrappers add: FSDP, torch.compile, activation checkpointing.
_WRAPPERS = {"_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"}


class WatchedFeatures:
    """Keep what modules put out while `capturing`: what `TrainingMonitor.step` takes as features.

    `watch` is a module's name, whose features are the run's only stream; or several, whose names are the
    streams'; or a mapping of streams to modules. A module puts out a tensor, a tuple that begins with one, or
    an output object with `last_hidden_state`: [N, D], [B, N, D], or a map [B, C, H, W], whose positions are
    rows. An attention mask [B, N] of the batch leaves padded tokens out.
    """

    def __init__(self, model: nn.Module, watch: WatchFeatures) -> None:
        self._single = isinstance(watch, str)
        streams = {watch: watch} if isinstance(watch, str) else _by_name(watch)
        self._outputs: dict[str, list[tuple[Tensor, Tensor | None]]] = {name: [] for name in streams}
        self._mask: Tensor | None = None
        self._enabled = False
        modules = _modules(model) if streams else {}
        found = {stream: _find(modules, name) for stream, name in streams.items()}
        self._handles = [module.register_forward_hook(self._hook(stream)) for stream, module in found.items()]

    def __bool__(self) -> bool:
        return bool(self._outputs)

    @contextmanager
    def capturing(self, batch: Any, wanted: bool = True) -> Iterator[None]:
        """Keep what the modules put out in the body, the forward pass of a micro-batch."""
        self.start(batch, wanted)
        try:
            yield
        finally:
            self.stop()

    def start(self, batch: Any, wanted: bool = True) -> None:
        """Keep what the modules put out from now on, if it is wanted."""
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        self._mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        self._enabled = wanted and bool(self._outputs)

    def stop(self) -> None:
        """Keep nothing more: what runs again in the backward pass has been seen."""
        self._enabled, self._mask = False, None

    def take(self) -> dict[str, Any]:
        """Return `features` and `valid`, all micro-batches together, and start anew; {} of nothing."""
        seen = {name: _together(outputs) for name, outputs in self._outputs.items() if outputs}
        for outputs in self._outputs.values():
            outputs.clear()
        if not seen:
            return {}
        if self._single:
            ((features, mask),) = seen.values()
            return {"features": features, "valid": mask}
        masks = {name: mask for name, (_, mask) in seen.items() if mask is not None}
        return {"features": {name: rows for name, (rows, _) in seen.items()}, "valid": masks or None}

    def close(self) -> None:
        """Take the hooks off the modules."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, stream: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if self._enabled:
                rows = _rows(stream, output)
                mask = self._mask
                fits = mask is not None and mask.shape == rows.shape[:2] and rows.ndim == 3
                self._outputs[stream].append((rows, mask.bool() if fits and mask is not None else None))

        return hook


def _by_name(watch: Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    if isinstance(watch, Mapping):
        return dict(watch)
    return {name: name for name in watch or ()}


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules by the names that they have in the user's model."""
    found: dict[str, nn.Module] = {}
    for name, module in unwrap(model).named_modules(remove_duplicate=False):
        found.setdefault(".".join(part for part in name.split(".") if part not in _WRAPPERS), module)
    return found


def _find(modules: Mapping[str, nn.Module], name: str) -> nn.Module:
    if name not in modules:
        listed = ", ".join(repr(known) for known in modules if known.count(".") < 3 and known)
        raise ConfigError(
            f"watch_features names the module {name!r}, which the model has not; it has {listed}"
        )
    return modules[name]


def _rows(stream: str, output: Any) -> Tensor:
    """Return an output as rows of features, without its graph."""
    tensor = output
    if isinstance(output, Mapping):
        tensor = output.get("last_hidden_state", next(iter(output.values()), None))
    elif isinstance(output, (list, tuple)):
        tensor = next(iter(output), None)
    if not isinstance(tensor, Tensor) or tensor.ndim not in (2, 3, 4):
        shape = list(tensor.shape) if isinstance(tensor, Tensor) else type(output).__name__
        raise ConfigError(f"expected [N, D], [B, N, D] or [B, C, H, W] of the module {stream!r}, got {shape}")
    rows = tensor.detach()
    return rows.flatten(2).transpose(1, 2) if rows.ndim == 4 else rows


def _together(outputs: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """Return the micro-batches together, padded to one length where theirs differ, and what is valid."""
    if len(outputs) == 1:
        return outputs[0]
    lengths = {rows.shape[1] for rows, _ in outputs if rows.ndim == 3}
    if len(lengths) < 2 and all(mask is None for _, mask in outputs):
        return torch.cat([rows for rows, _ in outputs]), None
    longest = max(lengths)
    padded = [nn.functional.pad(rows, (0, 0, 0, longest - rows.shape[1])) for rows, _ in outputs]
    masks = [nn.functional.pad(_valid(rows, mask), (0, longest - rows.shape[1])) for rows, mask in outputs]
    return torch.cat(padded), torch.cat(masks)


def _valid(rows: Tensor, mask: Tensor | None) -> Tensor:
    return torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device) if mask is None else mask
