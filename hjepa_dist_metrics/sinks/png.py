"""Encode pictures as PNG with the standard library, so that images need no optional package."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

_COLOUR_TYPE = {1: 0, 3: 2}  # channels -> PNG colour type: greyscale, RGB


def encode_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return the PNG file of uint8 [H, W, 1] or [H, W, 3].

    Raises ValueError for another shape or dtype. Source: PNG specification, third edition (W3C).
    """
    if pixels.ndim != 3 or pixels.shape[2] not in _COLOUR_TYPE or pixels.dtype != np.uint8 or not pixels.size:
        raise ValueError(
            f"an image must be uint8 [H, W, 1] or [H, W, 3] with H, W > 0, got {pixels.dtype} {pixels.shape}"
        )
    height, width, channels = pixels.shape
    rows = np.zeros((height, 1 + width * channels), dtype=np.uint8)  # leading 0: rows are stored unfiltered
    rows[:, 1:] = pixels.reshape(height, width * channels)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPE[channels], 0, 0, 0)
    body = zlib.compress(rows.tobytes(), level=4)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
