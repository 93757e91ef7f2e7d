"""The layout of TensorBoard's custom-scalars page as its protocol buffer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

# category title -> chart title -> ["Multiline", [regex, ...]] or ["Margin", [value, lower, upper]]
Layout: TypeAlias = Mapping[str, Mapping[str, Sequence[Any]]]


class MakeLayout(Protocol):
    """Make a layout of the tags that a run has written so far."""

    def __call__(self, observed: Collection[str], /) -> Layout:
        """Return the layout."""


def encode_layout(layout: Layout) -> Any:
    """Return the Summary of a layout whose first dashboard is open and whose others are closed.

    TensorBoard fetches the charts of open dashboards only, a request for each line.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.plugins.custom_scalar import metadata
    from tensorboard.plugins.custom_scalar.layout_pb2 import Category, Layout as LayoutProto

    categories = [
        Category(title=title, chart=[_chart(name, *what) for name, what in charts.items()], closed=place > 0)
        for place, (title, charts) in enumerate(layout.items())
    ]
    content = LayoutProto(category=categories).SerializeToString()
    plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME)
    value = Summary.Value(
        tag=metadata.CONFIG_SUMMARY_TAG,
        metadata=SummaryMetadata(plugin_data=plugin),
        tensor=TensorProto(dtype=DT_STRING, string_val=[content]),
    )
    return Summary(value=[value])


def _chart(title: str, kind: str, tags: Sequence[str]) -> Any:
    from tensorboard.plugins.custom_scalar.layout_pb2 import Chart, MarginChartContent, MultilineChartContent

    if kind == "Margin":
        value, lower, upper = tags
        series = MarginChartContent.Series(value=value, lower=lower, upper=upper)
        return Chart(title=title, margin=MarginChartContent(series=[series]))
    return Chart(title=title, multiline=MultilineChartContent(tag=tags))
