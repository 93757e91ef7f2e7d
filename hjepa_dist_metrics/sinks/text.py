"""Text that every output takes: without halves of surrogate pairs, which no encoding has."""

from __future__ import annotations

from collections.abc import Mapping

from hjepa_dist_metrics.sinks.base import HParam
from hjepa_dist_metrics.values import Text, Value


def encodable(text: str) -> str:
    r"""Return the text with lone surrogates written out, as `\udc80`; such come from broken file names."""
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def encodable_values(values: Mapping[str, Value]) -> Mapping[str, Value]:
    """Return values whose tags and texts can be encoded; as a rule the same mapping."""
    if all(map(str.isascii, values)) and not any(isinstance(value, Text) for value in values.values()):
        return values
    return {
        encodable(tag): Text(encodable(value.markdown)) if isinstance(value, Text) else value
        for tag, value in values.items()
    }


def encodable_hparams(hparams: Mapping[str, HParam]) -> dict[str, HParam]:
    """Return settings whose names and texts can be encoded."""
    return {
        encodable(name): encodable(value) if isinstance(value, str) else value
        for name, value in hparams.items()
    }
