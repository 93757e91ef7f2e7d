"""The records of an event file, their checksums computed for many records at once.

A record is an 8-byte length, its masked CRC-32C, that many bytes, and their masked CRC-32C. The checksum goes
byte by byte: NumPy takes a byte of every record at a time, which is some fifty times as fast as a loop in
Python over each.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hjepa_dist_metrics.errors import ConfigError

Words = npt.NDArray[np.uint32]
Places = npt.NDArray[np.int64]

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
# Longer records are pictures: for them the header's checksum must do.
_LONGEST_CHECKED = 65536
_POLYNOMIAL, _MASK = 0x82F63B78, 0xA282EAD8


def read_records(file: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (place, bytes) of each whole record; a last one that was cut short is left out.

    Raises ConfigError, with the place, where a checksum is wrong.
    """
    data = file.read_bytes()
    heads, starts, lengths = _frames(data)
    damaged = _first_damage(data, heads, starts, lengths)
    for place, start, length in zip(heads, starts, lengths, strict=True):
        if damaged is not None and place >= damaged:
            raise ConfigError(f"{file} is not an event file, or is damaged at byte {damaged}")
        if start + length + _CHECKSUM.size > len(data):
            return
        yield start, data[start : start + length]


def masked_crc32c(data: npt.NDArray[np.uint8], starts: Places, lengths: Places) -> Words:
    """Return the masked CRC-32C of each piece `data[start : start + length]`, uint32 [n]."""
    order = np.argsort(-lengths, kind="stable")
    places, sizes, table = starts[order], lengths[order], _table()
    crc = np.full(len(order), 0xFFFFFFFF, dtype=np.uint32)
    for at in range(int(sizes[0]) if len(sizes) else 0):
        active = int(np.searchsorted(-sizes, -at, side="left"))  # pieces longer than `at` come first
        known = crc[:active]
        crc[:active] = table[(known ^ data[places[:active] + at]) & 0xFF] ^ (known >> 8)
    crc = ~crc
    masked = ((crc >> 15) | (crc << 17)) + np.uint32(_MASK)
    found: Words = np.empty_like(masked)
    found[order] = masked
    return found


def _frames(data: bytes) -> tuple[list[int], list[int], list[int]]:
    """Return where each record's header and content begin, and the content's length, unchecked."""
    heads, starts, lengths, at = [], [], [], 0
    while at + _HEADER.size <= len(data):
        length, _ = _HEADER.unpack_from(data, at)
        heads.append(at)
        starts.append(at + _HEADER.size)
        lengths.append(length)
        at += _HEADER.size + length + _CHECKSUM.size
    return heads, starts, lengths


def _first_damage(data: bytes, heads: list[int], starts: list[int], lengths: list[int]) -> int | None:
    """Return where the first record with a wrong checksum begins, None where all are right."""
    held = np.frombuffer(data, dtype=np.uint8)
    places = np.array(heads, dtype=np.int64)
    expected = _stored(held, places + 8)
    wrong = [places[masked_crc32c(held, places, np.full(len(places), 8)) != expected]]
    checked = [
        (place, start, length)
        for place, start, length in zip(heads, starts, lengths, strict=True)
        if length <= _LONGEST_CHECKED and start + length + _CHECKSUM.size <= len(data)
    ]
    if checked:
        firsts, begins, sizes = np.array(checked, dtype=np.int64).T
        wrong.append(firsts[masked_crc32c(held, begins, sizes) != _stored(held, begins + sizes)])
    return int(min((bad[0] for bad in wrong if len(bad)), default=-1)) if any(map(len, wrong)) else None


def _stored(data: npt.NDArray[np.uint8], places: Places) -> Words:
    """Return the little-endian words at these places."""
    parts = data[places[:, None] + np.arange(4)].astype(np.uint32)
    words: Words = (parts << np.array([0, 8, 16, 24], dtype=np.uint32)).sum(axis=1, dtype=np.uint32)
    return words


@functools.cache
def _table() -> Words:
    """Return the checksums of all single bytes."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1).astype(np.uint32)
    return table
