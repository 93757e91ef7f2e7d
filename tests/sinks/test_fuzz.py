"""Any tag, text and number reaches every file, and is read back as it was."""

import math

from hypothesis import given, settings, strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hjepa_dist_metrics.catalog.prometheus import series_of
from hjepa_dist_metrics.readers.events import event_log
from hjepa_dist_metrics.readers.logs import jsonl_log
from hjepa_dist_metrics.sinks import JsonlSink, MemorySink, SinkGroup, TensorBoardSink, read_jsonl
from hjepa_dist_metrics.sinks.mlflow import metric_name
from hjepa_dist_metrics.sinks.text import encodable, file_name
from hjepa_dist_metrics.values import Scalar, Text

ANY = st.text(st.characters(), max_size=300)  # lone surrogates and control characters included
TAGS = (ANY | st.sampled_from(["step", "wall_time", "hparams"])).filter(lambda tag: tag.strip("/"))


def same(one, other):
    return one == other or (math.isnan(one) and math.isnan(other))


@settings(max_examples=40)
@given(st.dictionaries(TAGS, st.floats(width=32), min_size=1, max_size=6), ANY)
def test_any_tags_and_numbers_read_back(tmp_path_factory, numbers, text):
    folder = tmp_path_factory.mktemp("run")
    group = SinkGroup([TensorBoardSink(folder / "board"), JsonlSink(folder / "x.jsonl"), MemorySink()])
    group.write_hparams({text: text})
    group.write(3, {tag: Scalar(value) for tag, value in numbers.items()})
    group.write(4, {"note": Text(text)})
    group.close()
    assert group.failures == []
    expected = {encodable(tag): value for tag, value in numbers.items()}
    table = jsonl_log(folder / "x.jsonl").scalars
    assert all(any(same(at, value) for _, at in table[tag.lstrip("/")]) for tag, value in expected.items())
    assert read_jsonl(folder / "x.jsonl")[-1]["note"] == {"text": encodable(text)}
    board = event_log(folder / "board").scalars
    assert set(board) == {tag.lstrip("/") for tag in expected}
    assert set(board) == set(EventAccumulator(str(folder / "board")).Reload().Tags()["scalars"])


@settings(max_examples=200)
@given(ANY)
def test_any_tag_is_a_file_name(tag):
    name = file_name(tag)
    assert len(name) <= 120
    assert name.isascii()
    assert not set(name) & set("/\\\0")
    assert name not in (".", "..")


@settings(max_examples=200)
@given(st.lists(ANY.map(encodable), unique=True, min_size=2, max_size=2))
def test_two_tags_are_never_one_elsewhere(tags):
    one, other = tags
    assert series_of(one).selector != series_of(other).selector
    assert metric_name(one) != metric_name(other)
    if one and other:
        assert file_name(one) != file_name(other)
