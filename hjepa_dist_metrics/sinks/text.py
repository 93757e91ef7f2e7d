"""Text that every output takes: without halves of surrogate pairs, which no encoding has."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from urllib.parse import quote

from hjepa_dist_metrics.sinks.base import HParam
from hjepa_dist_metrics.values import Text, Value

# File systems take 255 bytes.
_LONGEST_NAME = 120


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


def file_name(tag: str) -> str:
    """Return a file name of ASCII for a tag: quoted, and with a digest in place of what is too long."""
    quoted = quote(tag, safe="", errors="backslashreplace")
    if quoted.startswith("."):  # `quote` leaves dots, and `..` is the folder above
        quoted = "%2E" + quoted[1:]
    if len(quoted) <= _LONGEST_NAME:
        return quoted
    return with_digest(quoted, quoted, _LONGEST_NAME)


def with_digest(short: str, whole: str, longest: int) -> str:
    """Return `short`, cut to `longest` characters with a digest of `whole`, which tells it from others."""
    digest = hashlib.sha256(whole.encode("utf-8", "backslashreplace")).hexdigest()[:16]
    return f"{short[: longest - len(digest) - 1]}-{digest}"


def without_credentials(text: str) -> str:
    """Return text for messages: without user and password in the URLs that it holds."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)
