"""Tags as names and labels of Prometheus, and numbers in its text format."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hjepa_dist_metrics.catalog.registry import find

PREFIX = "hjepa_"
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_]+")


@dataclass(frozen=True, slots=True)
class Series:
    """Hold where a tag's numbers go: a metric's name, its labels and its help text."""

    name: str
    labels: tuple[tuple[str, str], ...]
    help: str

    @property
    def selector(self) -> str:
        """Return the series as PromQL selects it."""
        return self.name + _braces(self.labels)

    def line(self, value: float, more: Mapping[str, str]) -> str:
        """Return the sample in Prometheus' text format, with more labels."""
        return f"{self.name}{_braces((*more.items(), *self.labels))} {number(value)}"


@functools.lru_cache(maxsize=8192)
def series_of(tag: str) -> Series:
    """Return the series of a tag.

    A tag of the catalog has its pattern as the name and what the pattern's placeholders stand for as labels:
    `loss/h2` is `hjepa_loss_h{i="2"}`. Any other one is a name made of its letters, and a label `tag`, which
    tells `a/b` from `a_b`.
    """
    entry = find(tag)
    if entry is None or entry.kind != "scalar":
        return Series(f"{PREFIX}user_{_name(tag)}", (("tag", tag),), "A number of the training loop's own.")
    return Series(metric_name(entry.pattern), tuple(entry.placeholder_values(tag).items()), entry.title)


def metric_name(pattern: str) -> str:
    """Return the metric of a catalog's pattern: without its placeholders."""
    return PREFIX + _name(_PLACEHOLDER.sub("", pattern))


def label_names(pattern: str) -> tuple[str, ...]:
    """Return the labels of a catalog's pattern: its placeholders."""
    return tuple(_PLACEHOLDER.findall(pattern))


def _name(text: str) -> str:
    return _NOT_IN_NAMES.sub("_", text).strip("_") or "unnamed"


def exposition(samples: Iterable[tuple[Series, Mapping[str, str], float]]) -> str:
    """Return samples, (series, more labels, value), in Prometheus' text format, by metric."""
    by_name: dict[str, list[tuple[Series, Mapping[str, str], float]]] = {}
    for sample in samples:
        by_name.setdefault(sample[0].name, []).append(sample)
    lines = []
    for name, members in sorted(by_name.items()):
        lines += [f"# HELP {name} {_help(members[0][0].help)}", f"# TYPE {name} gauge"]
        lines += [series.line(value, more) for series, more, value in members]
    return "".join(line + "\n" for line in lines)


def number(value: float) -> str:
    """Return a number as Prometheus reads it."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(float(value))


def _braces(labels: Iterable[tuple[str, str]]) -> str:
    inside = ",".join(f'{name}="{_escape(value)}"' for name, value in labels)
    return f"{{{inside}}}" if inside else ""


def _escape(value: str) -> str:
    clean = value.encode("utf-8", "backslashreplace").decode()
    return clean.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", " ")
