"""Event files, read back with TensorBoard's own reader."""

import math
import os
import shutil
import struct
import zlib

import numpy as np
import pytest
from google.protobuf import text_format
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from hjepa_dist_metrics.errors import MetricsError
from hjepa_dist_metrics.readers.events import event_log
from hjepa_dist_metrics.sinks import SinkGroup
from hjepa_dist_metrics.sinks.tensorboard import TensorBoardSink
from hjepa_dist_metrics.sinks.tensorboard.records import GuardedRecords
from hjepa_dist_metrics.values import Embedding, Histogram, Image, Scalar, Text


def read(directory):
    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0, "histograms": 0, "images": 0})
    return accumulator.Reload()


def events(directory):
    return [
        event for path in sorted(directory.glob("events.*")) for event in EventFileLoader(str(path)).Load()
    ]


def write_all(directory, writes, **options):
    sink = TensorBoardSink(directory, **options)
    for step, values in writes:
        sink.write(step, values)
    sink.close()


def histogram(counts, edges, low, high, total=0.0, squares=0.0):
    return Histogram(np.asarray(edges, float), np.asarray(counts, np.int64), low, high, total, squares)


def test_a_step_is_one_event_with_every_value(tmp_path):
    values = {f"loss/h{i}": Scalar(float(i)) for i in range(40)} | {
        "masking/coverage": Image(np.zeros((2, 2, 1), np.uint8))
    }
    write_all(tmp_path, [(7, values)])
    with_values = [event for event in events(tmp_path) if event.summary.value]
    assert [(event.step, len(event.summary.value)) for event in with_values] == [(7, 41)]


def test_scalars_read_back_at_their_step_and_time_nonfinite_included(tmp_path):
    sink = TensorBoardSink(tmp_path)
    sink.write(3, {"a": Scalar(0.25), "b": Scalar(math.nan), "c": Scalar(-math.inf)}, wall_time=1234.5)
    sink.close()
    accumulator = read(tmp_path)
    (event,) = accumulator.Scalars("a")
    assert (event.step, event.wall_time, event.value) == (3, 1234.5, 0.25)
    assert math.isnan(accumulator.Scalars("b")[0].value)
    assert accumulator.Scalars("c")[0].value == -math.inf


def test_a_resumed_run_leaves_each_step_once(tmp_path):
    write_all(tmp_path, [(step, {"a": Scalar(float(step))}) for step in range(8)])
    write_all(tmp_path, [(step, {"a": Scalar(100.0 + step)}) for step in range(5, 10)], start_step=5)
    points = [(event.step, event.value) for event in read(tmp_path).Scalars("a")]
    assert points == [(step, float(step)) for step in range(5)] + [
        (step, 100.0 + step) for step in range(5, 10)
    ]


def test_a_histogram_keeps_counts_and_edges_without_empty_tails(tmp_path):
    write_all(tmp_path, [(0, {"h": histogram([0, 0, 3, 0, 5, 0], range(7), 2.25, 4.5, 29.0, 113.0)})])
    (event,) = read(tmp_path).Histograms("h")
    value = event.histogram_value
    assert (value.min, value.max, value.num, value.sum, value.sum_squares) == (2.25, 4.5, 8, 29.0, 113.0)
    assert (value.bucket, value.bucket_limit) == ([3, 0, 5], [3, 4, 4.5])


@pytest.mark.parametrize(
    ("counts", "edges", "low", "high"),
    [
        ([0, 0], [0, 1, 2], math.inf, -math.inf),
        ([0, 4], [0, 1, 2], 1.5, 1.5),
        ([1, 2], [-math.inf, 0, math.inf], -9, 7),
    ],
    ids=["empty", "one value", "open ends"],
)
def test_a_degenerate_histogram_has_finite_rising_limits(tmp_path, counts, edges, low, high):
    write_all(tmp_path, [(0, {"h": histogram(counts, edges, low, high)})])
    value = read(tmp_path).Histograms("h")[0].histogram_value
    limits = [value.min, *value.bucket_limit]
    assert np.isfinite([*limits, value.max]).all()
    assert limits == sorted(limits)
    assert sum(value.bucket) == sum(counts)


def decode_png(data, shape):
    """Undo a PNG of unfiltered rows with the standard library alone."""
    chunks, position = {}, 8
    while position < len(data):
        size, kind = struct.unpack(">I4s", data[position : position + 8])
        body = data[position + 8 : position + 8 + size]
        assert struct.unpack(">I", data[position + 8 + size : position + 12 + size])[0] == zlib.crc32(
            kind + body
        )
        chunks[kind] = chunks.get(kind, b"") + body
        position += size + 12
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(shape[0], -1)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(shape)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_reads_back_pixel_by_pixel(tmp_path, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
    write_all(tmp_path, [(2, {"patches/heatmap": Image(pixels)})])
    (event,) = read(tmp_path).Images("patches/heatmap")
    assert (event.step, event.width, event.height) == (2, 7, 5)
    np.testing.assert_array_equal(decode_png(event.encoded_image_string, pixels.shape), pixels)


def test_pillow_reads_the_image(tmp_path):
    pillow = pytest.importorskip("PIL.Image", reason="Pillow, an independent PNG reader, is not installed")
    from hjepa_dist_metrics.sinks.tensorboard.png import encode_png

    pixels = np.random.default_rng(1).integers(0, 256, (4, 6, 3), np.uint8)
    (tmp_path / "x.png").write_bytes(encode_png(pixels))
    with pillow.open(tmp_path / "x.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_text_reads_back(tmp_path):
    write_all(tmp_path, [(0, {"notes/how_to_read": Text("# Bonjour\n\nétude")})])
    accumulator = read(tmp_path)
    (event,) = accumulator.Tensors("notes/how_to_read/text_summary")
    assert event.tensor_proto.string_val[0].decode() == "# Bonjour\n\nétude"
    assert accumulator.PluginTagToContent("text")


def test_an_embedding_writes_vectors_labels_sprites_and_the_list(tmp_path):
    vectors = np.arange(15, dtype=np.float32).reshape(5, 3) / 7
    sprites = np.arange(5 * 2 * 2 * 3, dtype=np.uint8).reshape(5, 2, 2, 3)
    value = Embedding(vectors, ("a", "b\tc", "d\ne", "f", ""), sprites)
    write_all(tmp_path, [(12, {"embeddings/targets": value})])
    config = text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (info,) = config.embeddings
    assert info.tensor_name == "embeddings/targets:00012"
    np.testing.assert_allclose(np.loadtxt(tmp_path / info.tensor_path, delimiter="\t"), vectors, rtol=1e-6)
    assert (tmp_path / info.metadata_path).read_text().split("\n") == ["a", "b c", "d e", "f", "", ""]
    sheet = decode_png((tmp_path / info.sprite.image_path).read_bytes(), (6, 6, 3))
    np.testing.assert_array_equal(sheet[2:4, 2:4], sprites[4])  # the fifth point: second row, second column


def test_resume_keeps_the_embeddings_of_before(tmp_path):
    value = Embedding(np.ones((2, 2), np.float32))
    write_all(tmp_path, [(step, {"e": value}) for step in (0, 10, 20)])
    write_all(tmp_path, [(step, {"e": value}) for step in (15, 25)], start_step=15)
    config = text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), ProjectorConfig())
    assert [info.tensor_name for info in config.embeddings] == ["e:00000", "e:00010", "e:00015", "e:00025"]


def hparams_data(accumulator, tag):
    content = accumulator.SummaryMetadata(f"_hparams_/{tag}").plugin_data.content
    return plugin_data_pb2.HParamsPluginData.FromString(content)


@pytest.mark.parametrize("success", [True, False])
def test_hparams_stay_in_the_run_and_say_how_it_ended(tmp_path, success):
    sink = TensorBoardSink(tmp_path)
    sink.write_hparams({"lr": 0.001, "levels": 3, "kind": "digits", "weights": [1, 2]}, ["val/knn_accuracy"])
    sink.write(0, {"val/knn_accuracy": Scalar(0.5)})
    sink.write_status(success)
    sink.close()
    accumulator = read(tmp_path)
    start = hparams_data(accumulator, "session_start_info").session_start_info
    assert (start.hparams["lr"].number_value, start.hparams["weights"].string_value) == (0.001, "[1, 2]")
    experiment = hparams_data(accumulator, "experiment").experiment
    assert [metric.name.tag for metric in experiment.metric_infos] == ["val/knn_accuracy"]
    end = hparams_data(accumulator, "session_end_info").session_end_info
    assert end.status == (api_pb2.STATUS_SUCCESS if success else api_pb2.STATUS_FAILURE)
    assert [event.value for event in accumulator.Scalars("val/knn_accuracy")] == [0.5]
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_the_layout_keeps_its_order(tmp_path):
    layout = {"Z": {"by level": ["Multiline", [r"^loss/h\d+$"]]}, "A": {"range": ["Margin", ["m", "l", "u"]]}}
    write_all(tmp_path, [], layout=layout)
    (event,) = read(tmp_path).Tensors("custom_scalars__config__")
    parsed = Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in parsed.category] == ["Z", "A"]
    assert list(parsed.category[0].chart[0].multiline.tag) == [r"^loss/h\d+$"]
    series = parsed.category[1].chart[0].margin.series[0]
    assert (series.value, series.lower, series.upper) == ("m", "l", "u")


def test_what_tensorboard_cannot_show_is_left_out_and_said_once(tmp_path, caplog):
    sink = TensorBoardSink(tmp_path)
    for step in range(3):
        sink.write(step, {"h": histogram([1], [0, 1], 0.5, 0.5), "/lead": Scalar(1.0), "": Scalar(1.0)})
        sink.write(
            step, {"h": Scalar(1.0), "flat": Image(np.zeros((2, 2), np.uint8)), "ok": Scalar(float(step))}
        )
    sink.close()
    tags = read(tmp_path).Tags()
    assert (tags["scalars"], tags["histograms"], tags["images"]) == (["lead", "ok"], ["h"], [])
    assert len(caplog.messages) == 3
    assert "'h': the tag already holds values of kind Histogram" in caplog.text
    assert "the tag is empty" in caplog.text


def test_a_file_in_place_of_the_directory_raises_at_opening(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OSError, match="taken"):
        TensorBoardSink(tmp_path / "taken")


def test_a_deleted_event_file_is_made_again_and_that_is_said(tmp_path, caplog):
    layout = {"Loss": {"total": ["Multiline", ["^loss$"]]}}
    sink = TensorBoardSink(tmp_path, layout=layout)
    sink.write_hparams({"lr": 0.5}, ["loss"])
    for step in range(4):
        sink.write(step, {"loss": Scalar(float(step))})
        sink.flush()
        if step == 1:
            next(tmp_path.glob("*tfevents*")).unlink()
    sink.close()
    events = read(tmp_path)
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(2, 2.0), (3, 3.0)]
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    assert event_log(tmp_path).settings == {"lr": 0.5}
    (message,) = caplog.messages
    assert "the event file was deleted; the run goes on in a new one at step 2" in message


@pytest.mark.parametrize("name", ["ж" * 50, "a" * 5000, "a/b\\c", "x\udc80", "nul\0", "..", "."])
def test_an_embedding_of_any_name_is_written(tmp_path, name):
    sink = SinkGroup([TensorBoardSink(tmp_path)])
    sink.write(3, {name: Embedding(np.ones((2, 2), np.float32), ("x\ud800", "y"))})
    sink.write(3, {"loss": Scalar(1.0)})
    sink.close()
    assert sink.failures == []
    (table,) = tmp_path.glob("00003/*/tensors.tsv")
    assert np.loadtxt(table).shape == (2, 2)
    assert [event.step for event in read(tmp_path).Scalars("loss")] == [3]


def test_a_directory_removed_during_the_run_raises_later_and_closes(tmp_path):
    sink = TensorBoardSink(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    sink.write(0, {"a": Scalar(1.0)})
    with pytest.raises(FileNotFoundError):
        sink.flush()
    with pytest.raises(FileNotFoundError):
        sink.write(1, {"a": Scalar(1.0)})
    with pytest.raises(FileNotFoundError):
        sink.close()
    sink.close()
    assert not (tmp_path / "run").exists()


def test_nothing_is_written_after_close(tmp_path):
    sink = TensorBoardSink(tmp_path)
    sink.close()
    sink.write(0, {"a": Scalar(1.0)})
    sink.flush()
    assert len(list(tmp_path.iterdir())) == 1
    assert read(tmp_path).Tags()["scalars"] == []


def test_a_forked_child_writes_nothing(tmp_path):
    sink = TensorBoardSink(tmp_path)
    sink._guard._pid = os.getpid() + 1  # what the guard sees in a child
    for step in range(
        2000
    ):  # more than the queue holds: a child's put would block, its thread does not exist
        sink.write(step, {"a": Scalar(1.0)})
    sink.flush()
    sink.close()
    sink._guard._pid = os.getpid()
    sink.close()
    assert read(tmp_path).Tags()["scalars"] == []


def test_without_tensorboard_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(MetricsError, match="pip install 'tensorboard"):
        TensorBoardSink(tmp_path)


def test_a_tensorboard_without_the_private_names_is_left_as_it_is():
    records = GuardedRecords.put_under(object())
    records.raise_failure()
    assert records._writer is None


def test_a_full_disk_under_the_writing_thread_reaches_the_caller_once_and_ends_the_file_there(tmp_path):
    sink = TensorBoardSink(tmp_path)
    sink.write(0, {"a": Scalar(0.0)})
    sink.flush()
    whole = next(tmp_path.glob("events.*")).read_bytes()

    class FullDisk:
        def write(self, data):
            raise OSError(28, "No space left on device")

        def flush(self):
            raise AssertionError("nothing may be written after a failure")

        close = flush

    sink._records._writer = FullDisk()
    sink.write(1, {"a": Scalar(1.0)})
    for verb in (sink.flush, sink.close):
        with pytest.raises(OSError, match="No space left"):
            verb()
    assert next(tmp_path.glob("events.*")).read_bytes() == whole
    assert [event.step for event in read(tmp_path).Scalars("a")] == [0]
