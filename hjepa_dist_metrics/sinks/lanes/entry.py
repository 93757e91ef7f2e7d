"""What waits to be written: the values of one step, in a part that is small and one that is not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from hjepa_dist_metrics.values import Embedding, Graph, Histogram, Image, Notice, Scalar, Text, Value, Video

Values = Mapping[str, Value]
Make = Callable[[], Values]

# What a write and a number cost in memory, about: objects, tags in dictionaries, closures.
ENTRY_BYTES = 512
SCALAR_BYTES = 64
# Values from this size on are given up first where the queue is full.
LARGE_BYTES = 16384


class Entry:
    """Hold one step's values until they are written.

    `small` are numbers and short texts. `large` holds at most one element, the rest; whoever pops it, the
    writing thread or a caller that makes room, has it: `list.pop` is atomic, and no lock is needed.
    """

    __slots__ = ("large", "large_bytes", "small", "small_bytes", "step", "wall_time")

    def __init__(
        self,
        step: int,
        wall_time: float,
        small: Make | None,
        small_bytes: int = 0,
        large: Make | None = None,
        large_bytes: int = 0,
    ) -> None:
        self.step, self.wall_time, self.small = step, wall_time, small
        self.large: list[Make] | tuple[()] = () if large is None else [large]
        self.small_bytes, self.large_bytes = ENTRY_BYTES + small_bytes, large_bytes

    @classmethod
    def of(cls, step: int, values: Values, wall_time: float) -> Entry:
        """Return the entry of values, which must not change any more."""
        sizes = {tag: size_of(value) for tag, value in values.items() if not isinstance(value, Scalar)}
        large = {tag: size for tag, size in sizes.items() if size >= LARGE_BYTES}
        scalar_bytes = SCALAR_BYTES * (len(values) - len(large))
        if not large:
            return cls(step, wall_time, lambda: values, scalar_bytes + sum(sizes.values()))
        small = {tag: value for tag, value in values.items() if tag not in large}
        large_bytes = sum(large.values())
        return cls(
            step,
            wall_time,
            (lambda: small) if small else None,
            scalar_bytes + sum(sizes.values()) - large_bytes,
            lambda: {tag: values[tag] for tag in large},
            large_bytes,
        )

    @classmethod
    def later(cls, step: int, make: Make, wall_time: float, size: int) -> Entry:
        """Return the entry of values that `make` returns on the writing thread, of about `size` bytes."""
        if size >= LARGE_BYTES:
            return cls(step, wall_time, None, 0, make, size)
        return cls(step, wall_time, make, size)

    def copy(self) -> Entry:
        """Return an entry of the same values, for another queue."""
        large = self.large[0] if self.large else None
        small_bytes = self.small_bytes - ENTRY_BYTES
        return Entry(self.step, self.wall_time, self.small, small_bytes, large, self.large_bytes)


class Once:
    """Call a function once, whichever thread comes first, and return its result to all."""

    def __init__(self, make: Make) -> None:
        self._make: Make | None = make
        self._lock = threading.Lock()
        self._values: Values = {}
        self._error: Exception | None = None

    def __call__(self) -> Values:
        """Return the result, or raise what the call raised."""
        with self._lock:
            if self._make is not None:
                make, self._make = self._make, None  # what it holds is let go
                try:
                    self._values = make()
                except Exception as error:
                    self._error = error
        if self._error is not None:
            raise self._error
        return self._values


def size_of(value: Value) -> int:
    """Return about how many bytes a value holds."""
    if isinstance(value, Image):
        return value.pixels.nbytes
    if isinstance(value, Video):
        return value.frames.nbytes
    if isinstance(value, Histogram):
        return value.counts.nbytes  # the edges are shared
    if isinstance(value, Embedding):
        sprites = 0 if value.sprites is None else value.sprites.nbytes
        return value.vectors.nbytes + sprites + sum(map(len, value.labels))
    if isinstance(value, Graph):
        return len(value.graph_def) + len(value.run_metadata)
    if isinstance(value, Text):
        return len(value.markdown)
    return len(value.title) + len(value.text) if isinstance(value, Notice) else SCALAR_BYTES
