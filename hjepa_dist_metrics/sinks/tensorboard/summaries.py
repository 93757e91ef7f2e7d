"""Values as TensorBoard's protocol buffers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hjepa_dist_metrics.sinks.tensorboard.png import encode_apng, encode_png
from hjepa_dist_metrics.values import Histogram, Image, Scalar, Text, Value, Video


def encode(tag: str, value: Value, description: str = "") -> Any:
    """Return the Summary.Value of anything but an embedding or a graph.

    `description` is Markdown that TensorBoard shows beside the tag; it reads that of a tag's first value.
    Raises ValueError or TypeError for a value that TensorBoard has no form for.
    """
    encoded = _encode(tag, value)
    if description:
        if not isinstance(value, Text):
            encoded.metadata.MergeFrom(_metadata(value))
        encoded.metadata.summary_description = description
    return encoded


def _metadata(value: Value) -> Any:
    """Return what the plugin of a value's kind is called: without it, its description is not read."""
    from tensorboard.compat.proto import summary_pb2 as proto

    if isinstance(value, Scalar):
        name, kind = "scalars", proto.DATA_CLASS_SCALAR
    elif isinstance(value, Histogram):
        name, kind = "histograms", proto.DATA_CLASS_TENSOR
    else:
        name, kind = "images", proto.DATA_CLASS_BLOB_SEQUENCE
    plugin = proto.SummaryMetadata.PluginData(plugin_name=name)
    return proto.SummaryMetadata(plugin_data=plugin, data_class=kind)


def _encode(tag: str, value: Value) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    if isinstance(value, Scalar):
        return Summary.Value(tag=tag, simple_value=value.value)
    if isinstance(value, Histogram):
        return Summary.Value(tag=tag, histo=encode_histogram(value))
    if isinstance(value, Image):
        return Summary.Value(tag=tag, image=_picture(value.pixels.shape, encode_png(value.pixels)))
    if isinstance(value, Video):
        encoded = encode_apng(value.frames, value.fps)
        return Summary.Value(tag=tag, image=_picture(value.frames.shape[1:], encoded))
    if isinstance(value, Text):
        from torch.utils.tensorboard.summary import text

        return text(tag, value.markdown).value[0]  # type: ignore[no-untyped-call]
    raise TypeError(f"expected a value of hjepa_dist_metrics.values, got {type(value).__name__}")


def _picture(shape: tuple[int, ...], encoded: bytes) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    height, width, channels = shape
    return Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=encoded)


def encode_histogram(value: Histogram) -> Any:
    """Return the HistogramProto of the bins between the first and the last that hold something.

    TensorBoard draws the first bin from `min` and the last up to `max`, so empty outer bins would come out
    backwards, and an infinite edge would empty the chart.
    """
    from tensorboard.compat.proto.summary_pb2 import HistogramProto

    if len(value.edges) != len(value.counts) + 1:
        raise ValueError(
            f"a histogram of {len(value.counts)} bins needs one more edge, got {len(value.edges)}"
        )
    filled = np.flatnonzero(value.counts)
    if not len(filled):
        return HistogramProto(
            min=0.0, max=0.0, num=0.0, sum=0.0, sum_squares=0.0, bucket_limit=[0.0], bucket=[0.0]
        )
    first, last = int(filled[0]), int(filled[-1])
    low, high = value.minimum, value.maximum
    if low == high:  # a bin without width is not drawn
        low, high = _finite(value.edges[first], low), _finite(value.edges[last + 1], high)
    limits = [float(edge) for edge in value.edges[first + 1 : last + 1]] + [
        max(high, float(value.edges[last]))
    ]
    return HistogramProto(
        min=low,
        max=high,
        num=float(value.count),
        sum=value.total,
        sum_squares=value.total_squares,
        bucket_limit=limits,
        bucket=[float(count) for count in value.counts[first : last + 1]],
    )


def _finite(edge: float, otherwise: float) -> float:
    return float(edge) if math.isfinite(edge) else otherwise
