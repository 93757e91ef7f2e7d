"""Weights & Biases offline: what a sync would upload is in the run's file."""

import json
import struct
import time

import numpy as np
import pytest

from hjepa_dist_metrics import MetricsLogger
from hjepa_dist_metrics.values import Embedding, Histogram, Image, Scalar, Text, Video

wandb = pytest.importorskip("wandb", reason="wandb (extra wandb) is not installed")

BLOCK, FULL, LAST = 32768, 1, 4


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-home"))


def history(directory, seconds=30.0):
    """Return the records of the newest offline run, once W&B's own process has written its end."""
    path = max(directory.glob("wandb/offline-run-*/run-*.wandb"))
    deadline = time.monotonic() + seconds
    while True:
        records = parse(path.read_bytes())
        kinds = {record.WhichOneof("record_type") for record in records}
        if {"exit", "history"} <= kinds or time.monotonic() > deadline:
            return records
        time.sleep(0.1)


def parse(data):
    """Return the records of a LevelDB log behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2 as pb

    assert data[:4] == b":W&B"
    records, parts, position = [], b"", 7
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left
            continue
        size, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        parts += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (FULL, LAST):
            records.append(pb.Record.FromString(parts))
            parts = b""
    return records


def logged(records):
    return [
        {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]


def test_every_kind_of_value_is_in_the_file(tmp_path):
    from hjepa_dist_metrics.sinks import WandbSink, wandb_dir

    sink = WandbSink(wandb_dir(tmp_path), "run", "project", tags=["a"], mode="offline")
    counts = np.array([0, 3, 1, 0], np.int64)
    sink.write_hparams({"lr": 0.5})
    sink.write(
        7,
        {
            "loss": Scalar(0.25),
            "histogram": Histogram(np.array([-np.inf, 0, 1, 2, np.inf]), counts, 0.5, 1.5, 3.0, 3.0),
            "image": Image(np.zeros((4, 4, 1), np.uint8)),
            "video": Video(np.zeros((2, 4, 4, 3), np.uint8)),
            "text": Text("<b>"),
            "embedding": Embedding(np.ones((2, 2), np.float32), ("a", "b")),
        },
    )
    sink.write_status(False)
    sink.close()
    records = history(wandb_dir(tmp_path))
    (line,) = logged(records)
    assert (line["step"], line["loss"]) == ("7", "0.25")
    assert line["histogram/_type"] == '"histogram"'
    assert json.loads(line["histogram/values"]) == [3, 1]
    assert json.loads(line["histogram/bins"]) == [0, 1, 2]
    assert {"image", "video", "text", "embedding"} <= {key.split("/")[0] for key in line}
    assert any(record.HasField("exit") and record.exit.exit_code == 1 for record in records)


def test_the_logger_sends_there_what_it_writes_elsewhere(tmp_path):
    config = {"wandb": {"mode": "offline", "project": "p"}}
    with MetricsLogger("run", tmp_path, config, use_wandb=True) as logger:
        for step in range(3):
            logger.log_metrics({"loss": step / 2}, step)
    assert logger.failures == []
    lines = logged(history(tmp_path / "wandb_runs"))
    assert [(line["step"], line["loss"]) for line in lines] == [("0", "0"), ("1", "0.5"), ("2", "1")]


def test_a_resumed_run_keeps_its_id(tmp_path):
    for _ in range(2):
        with MetricsLogger(
            "run", tmp_path, {"wandb": {"mode": "offline"}}, use_wandb=True, resume=True
        ) as logger:
            logger.log_metrics({"a": 1})
    names = [path.name for path in (tmp_path / "wandb_runs/wandb").glob("offline-run-*")]
    assert len(names) >= 1
    assert len({name.rsplit("-", 1)[1] for name in names}) == 1
