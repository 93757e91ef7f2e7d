"""Hooks that are on a model in the passes that are looked at, and on none of the others."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hjepa_dist_metrics.parallel import compat

See = Callable[[str, nn.Module, Tensor], None]
# Runs an update, or leaves it out.
Run = Callable[[Callable[[], None]], None]


def run_always(update: Callable[[], None]) -> None:
    """Run an update."""
    update()


class Hooks:
    """Handles of hooks, and what else is to be undone: `install` adds them, `remove` takes all of them back.

    While they are installed `torch.compile` does not compile and compiled models run eagerly: a compiled
    graph would pass the hooks by, or keep them for good.
    """

    def __init__(self) -> None:
        self._stack: ExitStack | None = None

    @property
    def installed(self) -> bool:
        """Return whether hooks are on the model."""
        return self._stack is not None

    def install(self, handles: Callable[[], Iterator[Any]]) -> None:
        """Add the hooks whose handles the function yields; nothing where they are there already."""
        if self._stack is not None:
            return
        self._stack = stack = ExitStack()
        stack.enter_context(eager())
        for handle in handles():
            stack.callback(handle.remove)

    def remove(self) -> None:
        """Take the hooks off."""
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()

    @contextmanager
    def during(self, handles: Callable[[], Iterator[Any]]) -> Iterator[None]:
        """Have the hooks on the model during the body; nested calls change nothing."""
        inside = self.installed
        self.install(handles)
        try:
            yield
        finally:
            if not inside:
                self.remove()


class _EagerStance:
    """Counts who wants compiled code to run eagerly; the first asks torch for it, the last takes it back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._stance: AbstractContextManager[Any] | None = None

    def begin(self) -> None:
        with self._lock:
            self._count += 1
            # Without dynamo nothing is compiled, and importing it takes seconds.
            if self._stance is None and "torch._dynamo" in sys.modules:
                self._stance = torch.compiler.set_stance("force_eager")
                self._stance.__enter__()

    def end(self) -> None:
        with self._lock:
            self._count -= 1
            if self._count == 0 and self._stance is not None:
                self._stance.__exit__(None, None, None)
                self._stance = None


_STANCE = _EagerStance()


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled code eagerly in the body, which may overlap with others."""
    _STANCE.begin()
    try:
        yield
    finally:
        _STANCE.end()


def is_repeated_or_compiled() -> bool:
    """Return whether a hook is called by activation checkpointing's second forward, or while tracing."""
    return torch.compiler.is_compiling() or compat.in_backward()


def output_hooks(modules: Mapping[str, nn.Module], see: See) -> Iterator[Any]:
    """Add hooks that call `see` with each module's name, the module and its output's first float tensor."""
    for name, module in modules.items():

        def hook(called: nn.Module, _: Any, output: Any, name: str = name) -> None:
            if not torch.compiler.is_compiling():
                tensor = first_tensor(output)
                if tensor is not None:
                    see(name, called, tensor)

        yield module.register_forward_hook(hook)


def first_tensor(output: Any) -> Tensor | None:
    """Return the first tensor of floats of a module's output: itself, or in a sequence, mapping or object."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    if isinstance(output, Mapping):
        items = list(output.values())
    elif isinstance(output, (tuple, list)):
        items = list(output)
    else:
        items = list(vars(output).values()) if hasattr(output, "__dict__") else []
    return next((t for t in items if isinstance(t, Tensor) and t.is_floating_point()), None)
