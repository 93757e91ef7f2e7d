"""Replace methods of objects that are not ours, for as long as a training runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

# Gets the method that is replaced and its arguments.
Wrapper = Callable[..., Any]


class Overrides:
    """Wrap methods of single objects, and take the wrappers off again.

    `trainer.evaluate` for instance is called through the object, so that an attribute of the object comes
    before the method of its class: no other trainer is touched.
    """

    def __init__(self) -> None:
        self._placed: list[tuple[Any, str, Any]] = []

    def wrap(self, owner: Any, name: str, wrapper: Wrapper) -> None:
        """Let `owner.name(...)` call `wrapper(method, ...)`; `method` is what was called before."""
        method = getattr(owner, name)

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            return wrapper(method, *args, **kwargs)

        setattr(owner, name, call)
        self._placed.append((owner, name, call))

    def within(self, owner: Any, name: str, context: Callable[[], AbstractContextManager[None]]) -> None:
        """Let `owner.name(...)` run inside of `context()`."""

        def wrapper(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            with context():
                return method(*args, **kwargs)

        self.wrap(owner, name, wrapper)

    def restore(self) -> None:
        """Take the wrappers off, but for those that somebody has wrapped in turn."""
        while self._placed:
            owner, name, call = self._placed.pop()
            if vars(owner).get(name) is call:
                delattr(owner, name)
