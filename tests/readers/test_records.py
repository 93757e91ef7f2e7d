"""Checksums of many records at once are those that TensorFlow's format wants, one by one."""

import numpy as np
import pytest
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c as theirs
from tensorboard.summary.writer.record_writer import RecordWriter

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.readers.records import masked_crc32c, read_records


def test_checksums_of_pieces_of_any_length_are_tensorboards():
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, 5000).astype(np.uint8)
    lengths = np.array([0, 1, 2, 3, 7, 8, 500, 500, 33, 1])
    starts = rng.integers(0, 4000, len(lengths))
    expected = [theirs(data[s : s + n].tobytes()) for s, n in zip(starts, lengths, strict=True)]
    assert masked_crc32c(data, starts, lengths).tolist() == expected
    assert masked_crc32c(data, starts[:0], lengths[:0]).tolist() == []


def write(path, records):
    with open(path, "wb") as file:
        writer = RecordWriter(file)
        for record in records:
            writer.write(record)


def test_records_come_back_and_a_torn_end_is_left_out(tmp_path):
    path = tmp_path / "events"
    records = [b"", b"a", bytes(range(256)) * 3, b"x" * 70_000, b"end"]
    write(path, records)
    assert [content for _, content in read_records(path)] == records
    whole = path.read_bytes()
    for cut in (1, 5, 18):
        path.write_bytes(whole[:-cut])
        assert [content for _, content in read_records(path)] == records[:-1]
    path.write_bytes(b"")
    assert list(read_records(path)) == []


@pytest.mark.parametrize("record", range(3))
@pytest.mark.parametrize("part", [0, 9, 12, -2])
def test_records_before_the_damage_are_read_and_it_is_named(tmp_path, record, part):
    path = tmp_path / "events"
    write(path, [b"first", b"second one", b"the third"])
    begins, ends = [0, 21, 47], [21, 47, 72]
    data = bytearray(path.read_bytes())
    assert len(data) == ends[-1]
    data[begins[record] + part if part >= 0 else ends[record] + part] ^= 0x11
    path.write_bytes(data)
    read = []
    with pytest.raises(ConfigError, match=rf"damaged at byte {begins[record]}$"):
        read.extend(content for _, content in read_records(path))
