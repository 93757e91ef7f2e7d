"""All that a run's files hold of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

# tag -> [(step, value), ...], by rising step.
ScalarTable: TypeAlias = dict[str, list[tuple[int, float]]]
# A step, and a PNG file.
Picture: TypeAlias = tuple[int, bytes]


@dataclass
class RunLog:
    """Hold a run's scalars, settings, pictures, texts and times.

    Args:
        scalars: tag -> [(step, value), ...].
        settings: by name, {} where the run recorded none.
        pictures: tag -> the first picture and the last one; one of them where there is only one.
        texts: tag -> the last (step, Markdown).
        began: seconds since the epoch of the first record, NaN where there is none.
        ended: of the last record.
        host: the machine that wrote the files, "" where they do not say.
    """

    scalars: ScalarTable = field(default_factory=dict)
    settings: dict[str, object] = field(default_factory=dict)
    pictures: dict[str, list[Picture]] = field(default_factory=dict)
    texts: dict[str, tuple[int, str]] = field(default_factory=dict)
    began: float = float("nan")
    ended: float = float("nan")
    host: str = ""

    def add_time(self, wall_time: float) -> None:
        """Extend the run's time by that of a record."""
        if wall_time > 0:
            self.began = wall_time if self.began != self.began else min(self.began, wall_time)
            self.ended = wall_time if self.ended != self.ended else max(self.ended, wall_time)

    def add_picture(self, tag: str, step: int, png: bytes) -> None:
        """Hold the first and the last picture of a tag."""
        self.pictures[tag] = [*self.pictures.get(tag, [])[:1], (step, png)]


def as_table(points: Mapping[str, Mapping[int, float]]) -> ScalarTable:
    """Return the points of each tag by rising step; tags without any are left out."""
    return {tag: sorted(values.items()) for tag, values in points.items() if values}
