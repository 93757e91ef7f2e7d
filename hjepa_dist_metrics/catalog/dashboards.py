"""TensorBoard's custom-scalar dashboards, from YAML files whose tags are the catalog's.

A file holds a title and charts, each with `lines` (one line for each tag) or `band` (a value within a range):

    title: Loss
    charts:
      - title: Loss by level
        lines: ["loss/h{i}"]
      - title: Cosine of prediction and target, level {i}
        band: {value: ..._mean, lower: ..._min, upper: ..._max}

Tags are patterns of the catalog. In `lines` a placeholder matches all its tags. A band needs exact tags, so
that a band with {i} is drawn once for each level. TensorBoard opens the first dashboard and leaves the others
closed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hjepa_dist_metrics.catalog.profiles import Profile, shows
from hjepa_dist_metrics.catalog.registry import chart_regex, find_pattern, suggest
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.resources import config_path

DASHBOARDS = (
    "health",
    "loss",
    "ema",
    "masking",
    "hierarchy",
    "prediction",
    "collapse",
    "probes",
    "gradient_flow",
    "learning_rate",
    "stability",
    "performance",
)

# Shown where what they are about is measured, which is on request.
REQUESTED_DASHBOARDS = ("internals",)
# Shown where a run's configuration names them: they are about one workload.
MULTIMODAL_DASHBOARDS = (
    "multimodal_training",
    "multimodal_embeddings",
    "multimodal_optimization",
    "multimodal_alignment",
)
DUAL_HEAD_DASHBOARDS = (
    "dual_head_overview",
    "dual_head_loss_breakdown",
    "dual_head_gradients",
    "dual_head_evaluation",
    "dual_head_statistics",
    "dual_head_distributions",
)
ALL_DASHBOARDS = (*DASHBOARDS, *REQUESTED_DASHBOARDS, *DUAL_HEAD_DASHBOARDS, *MULTIMODAL_DASHBOARDS)

_BAND_KEYS = ("value", "lower", "upper")

# category title -> chart title -> ["Multiline", [regex, ...]] or ["Margin", [value, lower, upper]]
Layout = dict[str, dict[str, list[Any]]]


@dataclass(frozen=True)
class Chart:
    """Hold one chart: `tags` are lines, or the (value, lower, upper) of a band."""

    title: str
    tags: tuple[str, ...]
    band: bool = False

    def shown(self, profile: Profile, observed: Collection[str]) -> Chart | None:
        """Return the chart with the lines that a run of the profile shows; None where there are none."""
        return self._of(tuple(tag for tag in self.tags if shows(profile, tag, observed)))

    def with_data(self, observed: Collection[str]) -> Chart | None:
        """Return the chart with the lines that match a tag of `observed`; None where there are none."""
        regexes = {tag: re.compile(chart_regex(tag)) for tag in self.tags}
        return self._of(tuple(tag for tag in self.tags if any(map(regexes[tag].match, observed))))

    def _of(self, tags: tuple[str, ...]) -> Chart | None:
        if not tags or (self.band and tags != self.tags):
            return None
        return Chart(self.title, tags, self.band)

    def unrolled(self, num_levels: int) -> Iterable[Chart]:
        """Yield the chart, or one for each level where it is a band with {i}."""
        if not self.band or not any("{i}" in text for text in (self.title, *self.tags)):
            yield self
            return
        for level in range(num_levels):
            tags = tuple(tag.replace("{i}", str(level)) for tag in self.tags)
            yield Chart(self.title.replace("{i}", str(level)), tags, band=True)


@dataclass(frozen=True)
class Dashboard:
    """Hold one dashboard: a title, and charts in order."""

    title: str
    charts: tuple[Chart, ...]


def load_dashboards(names: Iterable[str] | Literal["default"] = "default", num_levels: int = 3) -> Layout:
    """Return the layout of dashboards, in the order named, as `TensorBoardSink(layout=...)` takes it.

    `names` are files of configs/dashboards/ without `.yaml`, or paths ending in `.yaml`; "default" is all of
    DASHBOARDS. Regexes are anchored, so that a chart fetches its own tags only.
    Raises ConfigError for an unknown name, a file of another shape, or a tag that is not in the catalog.
    """
    chosen = DASHBOARDS if names == "default" else tuple(names)
    layout: Layout = {}
    for name in chosen:
        dashboard = load_dashboard(name)
        charts = layout.setdefault(dashboard.title, {})
        for chart in dashboard.charts:
            charts.update((one.title, _layout_of(one)) for one in chart.unrolled(num_levels))
    return layout


def observed_layout(
    dashboards: Iterable[Dashboard],
    observed: Collection[str],
    num_levels: int = 3,
    profile: Profile | None = None,
) -> Layout:
    """Return the layout of dashboards for a run that has written the tags `observed`: only what has data.

    Lines without a tag are left out, with a `profile` also those that such a run does not show, and charts
    and dashboards that nothing is left of.
    """
    layout: Layout = {}
    for dashboard in dashboards:
        charts = [one for chart in dashboard.charts for one in chart.unrolled(num_levels)]
        for chart in charts:
            kept = chart.with_data(observed)
            kept = kept.shown(profile, observed) if kept and profile else kept
            if kept:
                layout.setdefault(dashboard.title, {})[kept.title] = _layout_of(kept)
    return layout


def load_dashboard(name: str) -> Dashboard:
    """Return one dashboard of configs/dashboards/, or of a path that ends in `.yaml`."""
    import yaml

    path = Path(name) if name.endswith((".yaml", ".yml")) else config_path(f"dashboards/{name}.yaml")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"dashboard {name!r} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"dashboard {path} is not YAML: {' '.join(str(error).split())}") from error
    return _parse(content, str(path))


def _layout_of(chart: Chart) -> list[Any]:
    if chart.band:
        return ["Margin", list(chart.tags)]
    return ["Multiline", [chart_regex(tag) for tag in chart.tags]]


def _parse(content: object, where: str) -> Dashboard:
    fields = _fields(content, where, {"title": str, "charts": list})
    charts = tuple(
        _parse_chart(chart, f"{where}, chart {number}")
        for number, chart in enumerate(fields["charts"], start=1)
    )
    titles = [chart.title for chart in charts]
    if len(set(titles)) != len(titles) or not charts:
        raise ConfigError(f"{where}: charts need titles of their own, got {titles}")
    return Dashboard(fields["title"], charts)


def _parse_chart(content: object, where: str) -> Chart:
    if isinstance(content, Mapping) and "band" in content:
        fields = _fields(content, where, {"title": str, "band": dict})
        band = _fields(fields["band"], f"{where}, band", dict.fromkeys(_BAND_KEYS, str))
        chart = Chart(fields["title"], tuple(band[key] for key in _BAND_KEYS), band=True)
    else:
        fields = _fields(content, where, {"title": str, "lines": list})
        chart = Chart(fields["title"], tuple(fields["lines"]))
    for tag in chart.tags:
        _check_tag(tag, where)
    return chart


def _fields(content: object, where: str, kinds: Mapping[str, type]) -> dict[str, Any]:
    wanted = " and ".join(f"{key} ({kind.__name__})" for key, kind in kinds.items())
    if not isinstance(content, Mapping) or set(content) != set(kinds):
        got = sorted(map(str, content)) if isinstance(content, Mapping) else repr(content)
        raise ConfigError(f"{where}: expected {wanted}, got {got}")
    for key, kind in kinds.items():
        if not isinstance(content[key], kind):
            raise ConfigError(f"{where}: expected {wanted}, got {key} {content[key]!r}")
    return dict(content)


def _check_tag(tag: object, where: str) -> None:
    entry = find_pattern(tag) if isinstance(tag, str) else None
    if entry is None:
        raise ConfigError(f"{where}: the catalog has no tag {tag!r}; {suggest(str(tag))}")
    if entry.kind != "scalar":
        raise ConfigError(f"{where}: {tag!r} is of kind {entry.kind}; a chart draws scalars")
