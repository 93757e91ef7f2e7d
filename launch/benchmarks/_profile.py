"""Where the training thread's time goes: by function of a profiled run, and by the monitor's observers."""

from __future__ import annotations

import cProfile
import functools
import inspect
import pstats
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from benchmarks._ranks import markdown, milliseconds
from hjepa_dist_metrics import Observer

_PACKAGE = "hjepa_dist_metrics/"
_MOST_FUNCTIONS = 10


def hottest(profile: cProfile.Profile) -> str:
    """Return a table of the package's functions in which the training thread spends most time."""
    found = []
    stats: dict[Any, Any] = vars(pstats.Stats(profile))["stats"]
    for (file, line, name), (_, calls, _, cumulative, _) in stats.items():
        _, package, rest = file.rpartition(_PACKAGE)
        if package and not rest.startswith(("reference/", "parallel/")):
            found.append((cumulative, f"{rest}:{line} {name}", calls))
    rows = [
        [f"`{name}`", str(calls), milliseconds(seconds)]
        for seconds, name, calls in sorted(found, reverse=True)[:_MOST_FUNCTIONS]
    ]
    return markdown(["training thread, whole profiled run", "calls", "ms, with what they call"], rows)


@contextmanager
def timed_observers() -> Iterator[Mapping[str, float]]:
    """Yield the training thread's processor seconds in the methods of each observer, by its class's name.

    What a method calls of its own observer counts once; what it calls of another one counts for both. The
    gradients' clipping, which a loop without a monitor does too, is among them.
    """
    seconds: dict[str, float] = defaultdict(float)
    inside: set[str] = set()

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(self: Observer, *args: Any, **kwargs: Any) -> Any:
            name = type(self).__name__
            if name in inside:
                return method(self, *args, **kwargs)
            inside.add(name)
            begun = time.thread_time()
            try:
                return method(self, *args, **kwargs)
            finally:
                inside.discard(name)
                seconds[name] += time.thread_time() - begun

        return call

    with ExitStack() as stack:
        for kind in _subclasses(Observer):
            for name, method in list(vars(kind).items()):
                plain = inspect.isfunction(method) and not hasattr(method, "__wrapped__")
                if plain and not name.startswith("__") and not inspect.isgeneratorfunction(method):
                    stack.enter_context(patch.object(kind, name, timed(method)))
        yield seconds


def observer_shares(seconds: Mapping[str, float], steps: int, step_seconds: float) -> str:
    """Return a table of what each observer takes of the training thread.

    `step_seconds` is what a step takes of it without a monitor, processor time both.
    """
    rows = [
        [f"`{name}`", milliseconds(spent / steps), f"{100 * spent / steps / step_seconds:.2f} %"]
        for name, spent in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    return markdown(["observer", "processor ms a step", "of a step without a monitor"], rows)


def _subclasses(kind: type) -> Iterator[type]:
    children: list[type] = kind.__subclasses__()
    for child in children:
        yield child
        yield from _subclasses(child)
