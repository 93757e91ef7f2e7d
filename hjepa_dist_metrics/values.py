"""What a metric may report: frozen values that sinks write and figures draw.

A value is plain host data (Python and NumPy): it holds no device tensor and no autograd graph, so it
can be handed to another thread as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import SupportsFloat, TypeAlias

import numpy as np
import numpy.typing as npt


class Scalar(float):
    """Be one number: it compares, adds up and prints as a float. Hundreds are made at every log, in C."""

    __slots__ = ()

    @property
    def value(self) -> float:
        """Return the plain float."""
        return float(self)


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Hold integer counts over fixed edges.

    `edges` float64 [bins + 1], rising; `counts` int64 [bins], bin i covering [edges[i], edges[i+1]).
    `minimum`, `maximum`, `total` (sum) and `total_squares` describe the finite values that were counted.
    """

    edges: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]
    minimum: float
    maximum: float
    total: float
    total_squares: float
    nonfinite: int = 0

    @classmethod
    def of(
        cls, values: npt.NDArray[np.float64], edges: npt.NDArray[np.float64], nonfinite: int = 0
    ) -> Histogram:
        """Count finite values between edges; `nonfinite` is how many others there were."""
        counts = np.histogram(values, bins=edges)[0].astype(np.int64)
        if len(values) == 0:
            return cls(edges, counts, 0.0, 0.0, 0.0, 0.0, nonfinite)
        return cls(
            edges,
            counts,
            float(values.min()),
            float(values.max()),
            float(values.sum()),
            float(values @ values),
            nonfinite,
        )

    @property
    def count(self) -> int:
        """Return the number of finite values counted."""
        return int(self.counts.sum())


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """Hold one picture: uint8 [H, W, 3] or [H, W, 1]."""

    pixels: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Text:
    """Hold Markdown text."""

    markdown: str


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """Hold points for TensorBoard's projector.

    `vectors` float32 [N, D]; `labels` one text a point; `sprites` uint8 [N, H, W, 3], a picture a point.
    """

    vectors: npt.NDArray[np.float32]
    labels: tuple[str, ...] = ()
    sprites: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Video:
    """Hold a moving picture: uint8 [T, H, W, 1] or [T, H, W, 3], T > 0, shown at `fps` frames a second."""

    frames: npt.NDArray[np.uint8]
    fps: float = 4.0


@dataclass(frozen=True, slots=True)
class Graph:
    """Hold a model's graph: a serialized TensorFlow `GraphDef`, and its `RunMetadata`."""

    graph_def: bytes
    run_metadata: bytes = b""


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """Hold a picture that is yet to be drawn: `draw()` returns it.

    What it reads must not change any more: it is drawn later, by the process that writes or on its behalf.
    `sketch()` returns what draws it elsewhere: a picklable function, without arguments, that returns a
    matplotlib figure. Without it the picture is drawn by `draw`.
    """

    draw: Callable[[], Image]
    sketch: Callable[[], Callable[[], object]] | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """Hold a message to people, such as an alert that begins: `level` is "info", "warning" or "failing"."""

    level: str
    title: str
    text: str = ""


Value: TypeAlias = Scalar | Histogram | Image | Text | Embedding | Video | Graph | Drawing | Notice


def as_float(number: SupportsFloat) -> float:
    """Return a number as a float; an integer beyond every float is infinite."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf  # type: ignore[operator]
