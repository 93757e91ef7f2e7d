"""Encode pictures as PNG with the standard library, so that images need no optional package."""

from __future__ import annotations

import itertools
import struct
import zlib

import numpy as np
import numpy.typing as npt

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
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
    head = _SIGNATURE + _header(width, height, channels)
    return head + _chunk(b"IDAT", _body(pixels)) + _chunk(b"IEND", b"")


def encode_apng(frames: npt.NDArray[np.uint8], fps: float) -> bytes:
    """Return the animated PNG of uint8 [T, H, W, 1] or [T, H, W, 3], repeated for ever.

    Browsers play it, and what knows nothing of animation shows the first frame. Raises ValueError for
    another shape or dtype, or for a rate that is not positive. Source: as above, section 11.3.6.
    """
    if frames.ndim != 4 or frames.shape[3] not in _COLOUR_TYPE or frames.dtype != np.uint8 or not frames.size:
        raise ValueError(
            f"a video must be uint8 [T, H, W, 1] or [T, H, W, 3], none of them 0, got {frames.dtype} "
            f"{frames.shape}"
        )
    if not fps > 0:
        raise ValueError(f"a video needs a positive number of frames a second, got {fps!r}")
    count, height, width, channels = frames.shape
    delay = min(max(round(1000 / fps), 1), 0xFFFF)  # in thousandths of a second
    sequence = itertools.count()
    parts = [_SIGNATURE, _header(width, height, channels), _chunk(b"acTL", struct.pack(">II", count, 0))]
    for index, frame in enumerate(frames):
        control = struct.pack(">IIIIIHHBB", next(sequence), width, height, 0, 0, delay, 1000, 0, 0)
        parts.append(_chunk(b"fcTL", control))
        body = _body(frame)
        number = b"" if index == 0 else struct.pack(">I", next(sequence))
        parts.append(_chunk(b"fdAT" if index else b"IDAT", number + body))
    return b"".join([*parts, _chunk(b"IEND", b"")])


def _header(width: int, height: int, channels: int) -> bytes:
    return _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPE[channels], 0, 0, 0))


def _body(pixels: npt.NDArray[np.uint8]) -> bytes:
    height, width, channels = pixels.shape
    rows = np.zeros((height, 1 + width * channels), dtype=np.uint8)  # leading 0: rows are stored unfiltered
    rows[:, 1:] = pixels.reshape(height, width * channels)
    return zlib.compress(rows.tobytes(), level=4)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
