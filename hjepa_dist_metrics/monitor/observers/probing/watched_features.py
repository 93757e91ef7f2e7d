"""Features of a model's modules, found by the modules' names."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.monitor.observer import Observer, Scope
from hjepa_dist_metrics.monitor.observers.probing.probes import Probes
from hjepa_dist_metrics.parallel import compat, unwrap

# One module, several, or several under names of their own.
WatchFeatures = str | Sequence[str] | Mapping[str, str] | None

# Parts of names that wrappers add: FSDP, torch.compile, activation checkpointing.
_WRAPPERS = {"_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"}


class WatchedFeatures(Observer):
    """Keep what modules put out in the forward passes of steps whose features are used.

    A module puts out a tensor, a tuple that begins with one, or an output object with `last_hidden_state`:
    [N, D], [B, N, D], or a map [B, C, H, W], whose positions are rows. An attention mask [B, N] of the batch
    leaves padded tokens out. Passes in a `pause`, those of a model in evaluation mode without gradients, and
    those that activation checkpointing repeats in the backward pass are not looked at. On other steps a hook
    asks whether it is wanted and does nothing: a few microseconds for each watched module.
    """

    def __init__(self, probes: Probes) -> None:
        self._probes = probes
        self._single = False
        self._outputs: dict[str, list[tuple[Tensor, Tensor | None]]] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._mask: Tensor | None = None
        self._within = True  # the part of a step whose forward passes count
        self._paused = self._evaluating = False
        self._decided_step, self._is_used = -1, False  # whether that step uses features

    def __bool__(self) -> bool:
        return bool(self._outputs)

    def attach(self, scope: Scope) -> None:
        """Begin to observe a run: nothing is watched yet."""
        super().attach(scope)
        self._root = unwrap(scope.model)

    def watch(self, watch: WatchFeatures, model: nn.Module | None = None) -> None:
        """Watch modules of the model by name, or of another one; see `TrainingMonitor.watch_features`."""
        if self._outputs:
            raise ConfigError(
                f"the features {sorted(self._outputs)} are watched already: name all of them in one call"
            )
        streams = {watch: watch} if isinstance(watch, str) else _by_name(watch)
        if not streams:
            return
        self._root = unwrap(self.scope.model if model is None else model)
        modules = _modules(self._root)
        found = {stream: _find(modules, name) for stream, name in streams.items()}
        self._single = isinstance(watch, str)
        self._outputs = {name: [] for name in streams}
        self._handles = [module.register_forward_hook(self._hook(name)) for name, module in found.items()]

    @contextmanager
    def capturing(self, batch: Any) -> Iterator[None]:
        """Count the forward passes in the body alone, those of a micro-batch."""
        self.start(batch)
        try:
            yield
        finally:
            self.stop()

    def start(self, batch: Any) -> None:
        """Count forward passes from now on, and none outside of `start` and `stop` any more."""
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        self._mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        self._within = True

    def stop(self) -> None:
        """Count no more forward passes until the next `start`."""
        self._within, self._mask = False, None

    @property
    def is_paused(self) -> bool:
        """Return whether the loop is in a `pause`."""
        return self._paused

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Count no forward passes in the body."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Keep what modules put out in the body, on any step and in any mode, and nothing else."""
        self.take()
        self._evaluating = True
        try:
            yield
        finally:
            self._evaluating = False
            self.take()

    def take(self) -> dict[str, Any]:
        """Return `features` and `valid`, all forward passes together, and start anew; {} of nothing."""
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

    def add_to(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a step's arguments with the watched features; ConfigError where both have features."""
        watched = self.take()
        if watched and given.get("features") is not None:
            raise ConfigError(
                "features come from watch_features and from the step itself: use one of them, or name the "
                "module of every stream"
            )
        return {**given, **watched}

    def close(self) -> None:
        """Take the hooks off the modules."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self, stream: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if self._is_wanted():
                rows = _rows(stream, output)
                mask = self._mask
                fits = mask is not None and mask.shape == rows.shape[:2] and rows.ndim == 3
                self._outputs[stream].append((rows, mask.bool() if fits and mask is not None else None))

        return hook

    def _is_wanted(self) -> bool:
        if self._evaluating:
            return True
        if not self._within or self._paused or not self._step_uses_features():
            return False
        if not self._root.training and not torch.is_grad_enabled():  # an evaluation
            return False
        return not compat.in_backward()

    def _step_uses_features(self) -> bool:
        """Decide once a step: hooks ask on every forward pass."""
        if self._decided_step != self.scope.step:
            self._decided_step = self.scope.step
            self._is_used = self._probes.takes_next or self.scope.is_due("representations")
        return self._is_used


def _by_name(watch: Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    if isinstance(watch, Mapping):
        return dict(watch)
    return {name: name for name in watch or ()}


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules by the names that they have in the user's model."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found.setdefault(".".join(part for part in name.split(".") if part not in _WRAPPERS), module)
    return found


def _find(modules: Mapping[str, nn.Module], name: str) -> nn.Module:
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=5, cutoff=0.4)
        listed = near or [known for known in modules if known and known.count(".") < 3]
        raise ConfigError(
            f"watch_features names the module {name!r}, which the model does not have; "
            f"{'near ones are' if near else 'it has'} {', '.join(map(repr, listed))}"
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
