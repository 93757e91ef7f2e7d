"""What the catalog holds about a tag, and how a pattern matches tags."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind = Literal["scalar", "histogram", "image", "text", "embedding"]
Family = Literal["scalars", "representations", "histograms", "figures", "system"]
Verdict = Literal["ok", "warn", "bad"]

# What a placeholder of a pattern stands for. A name holds no slash, so that a pattern stays in its group.
PLACEHOLDERS = {
    "i": r"\d+",
    "rank": r"\d+",
    "name": r"[^/]+",
    "module": r"[^/]+",
    "group": r"[^/]+",
    "rule": r"[^/]+",
    **dict.fromkeys(("a", "b", "from", "to"), r"[^/]+"),
}
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Limits:
    """Hold the values at which a number warns and is bad; `low_is_bad` says on which side."""

    warn: float
    bad: float
    low_is_bad: bool

    def judge(self, value: float) -> Verdict:
        """Return "ok", "warn" or "bad"; NaN is bad."""
        sign = 1.0 if self.low_is_bad else -1.0
        if not sign * value >= sign * self.bad:
            return "bad"
        return "ok" if sign * value >= sign * self.warn else "warn"


LimitsOf: TypeAlias = Callable[[int, int], Limits]


@dataclass(frozen=True, slots=True)
class Entry:
    """Describe one tag, or the tags of one pattern such as `loss/h{i}`."""

    pattern: str
    """The tag; {i} and {rank} stand for a number, the others for a name without slash."""
    title: str
    """The quantity in a few words."""
    meaning: str
    """What it shows and how it is computed, in a sentence or two."""
    unit: str = ""
    """Unit, empty for pure numbers."""
    source: str = ""
    """Title or arXiv number of the paper that the number comes from."""
    kind: Kind = "scalar"
    healthy: str = ""
    """What good and bad values look like, in words."""
    limits: LimitsOf | None = None
    """(dim, count) -> Limits, for tags with a baseline: `dim` features, `count` rows of the whole job."""
    bounds: Limits | None = None
    """Limits that are the same for every run, of counts that must be 0 for instance."""
    dashboard: str = ""
    """Name of the dashboard in configs/dashboards/ that shows it, empty for none."""
    family: Family = "scalars"
    """The cadence that it follows."""
    deviation: str = ""
    """How it differs from what often goes by the same name."""

    @property
    def regex(self) -> str:
        """Return the pattern as an anchored regular expression; a dot in a tag is a dot."""
        return to_regex(self.pattern)

    @property
    def is_pattern(self) -> bool:
        """Return whether the pattern stands for more than one tag."""
        return _PLACEHOLDER.search(self.pattern) is not None

    def matches(self, tag: str) -> bool:
        """Return whether the pattern matches the tag."""
        return _compiled(self.pattern).fullmatch(tag) is not None

    def titled(self, tag: str) -> str:
        """Return the title with the placeholders filled from a tag: `rank of {name}` as `rank of level0`."""
        values = self.placeholder_values(tag)
        return _PLACEHOLDER.sub(lambda name: values.get(name[1], name[0]), self.title)

    def placeholder_values(self, tag: str) -> dict[str, str]:
        """Return what the placeholders stand for in a tag; {} for a tag that does not match."""
        match = _compiled(self.pattern).fullmatch(tag)
        names = _PLACEHOLDER.findall(self.pattern)
        return dict(zip(names, match.groups(), strict=True)) if match else {}

    @property
    def literal_length(self) -> int:
        """Return how many characters of the pattern are fixed: the more, the more specific."""
        return len(_PLACEHOLDER.sub("", self.pattern))


def to_regex(pattern: str) -> str:
    r"""Return the anchored regular expression of a pattern: `loss/h{i}` gives `^loss/h\d+$`.

    It means the same to Python's re and to the JavaScript and Go dialects. Raises ValueError for a
    placeholder that is not in PLACEHOLDERS.
    """
    return _anchored(pattern, "{}")


def _anchored(pattern: str, group: str) -> str:
    parts = _PLACEHOLDER.split(pattern)  # literal, name, literal, ..., literal
    for name in parts[1::2]:
        if name not in PLACEHOLDERS:
            raise ValueError(f"pattern {pattern!r} has {{{name}}}; placeholders: {', '.join(PLACEHOLDERS)}")
    parts[0::2] = [re.sub(r"([.+*?^$()\[\]{}|\\])", r"\\\1", literal) for literal in parts[0::2]]
    parts[1::2] = [group.format(PLACEHOLDERS[name]) for name in parts[1::2]]
    return "^" + "".join(parts) + "$"


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(_anchored(pattern, "({})"))
