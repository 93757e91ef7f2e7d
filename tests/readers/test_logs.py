"""Event files and JSON lines come back as they were written, and damage is named."""

import json
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.readers.events import event_log
from hjepa_dist_metrics.readers.logs import jsonl_log, read_logs, read_scalars
from hjepa_dist_metrics.sinks import JsonlSink, TensorBoardSink
from hjepa_dist_metrics.values import Image, Scalar, Text


def write_events(
    directory: Path, values: dict[str, list[tuple[int, float]]], start: int = 0, **options
) -> None:
    with SummaryWriter(str(directory), purge_step=start) as writer:
        for tag, points in values.items():
            for step, value in points:
                writer.add_scalar(tag, value, step, **options)


def event_file(directory: Path) -> Path:
    (file,) = directory.glob("*tfevents*")
    return file


def test_event_files_read_as_tensorboard_reads_them(tmp_path: Path):
    write_events(tmp_path, {"loss/total": [(0, 1.5), (10, 0.5)], "train/lr": [(0, 0.125)]})
    accumulator = EventAccumulator(str(tmp_path)).Reload()
    theirs = {t: [(e.step, e.value) for e in accumulator.Scalars(t)] for t in accumulator.Tags()["scalars"]}
    assert (
        event_log(tmp_path).scalars
        == theirs
        == {"loss/total": [(0, 1.5), (10, 0.5)], "train/lr": [(0, 0.125)]}
    )


def test_scalars_of_the_new_style_read_too(tmp_path: Path):
    write_events(tmp_path, {"a": [(3, 2.5)]}, new_style=True)
    assert event_log(tmp_path).scalars == {"a": [(3, 2.5)]}


def test_a_restart_takes_back_what_it_writes_again(tmp_path: Path):
    write_events(tmp_path / "run", {"a": [(0, 1.0), (5, 2.0), (9, 3.0)]})
    event_file(tmp_path / "run").rename(tmp_path / "run" / "events.out.tfevents.1.first")
    write_events(tmp_path / "run", {"a": [(6, 8.0)]}, start=5)
    assert read_scalars(tmp_path) == {"run": {"a": [(0, 1.0), (6, 8.0)]}}


def test_a_torn_end_loses_one_record(tmp_path: Path):
    write_events(tmp_path, {"a": [(0, 1.0), (1, 2.0)]})
    file = event_file(tmp_path)
    file.write_bytes(file.read_bytes()[:-3])
    assert event_log(tmp_path).scalars == {"a": [(0, 1.0)]}


@pytest.mark.parametrize("place", [2, 20, -30])
def test_a_flipped_byte_is_an_error_that_names_the_file(tmp_path: Path, place: int):
    write_events(tmp_path, {"a": [(0, 1.0), (1, 2.0)]})
    file = event_file(tmp_path)
    data = bytearray(file.read_bytes())
    data[place] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=rf"{file.name} is .*damaged"):
        event_log(tmp_path)


def test_a_file_that_only_has_the_name_is_an_error(tmp_path: Path):
    (tmp_path / "events.out.tfevents.0").write_bytes(b"this was never an event file, not at all")
    with pytest.raises(ConfigError, match="is not an event file"):
        read_scalars(tmp_path)


def test_a_log_directory_has_each_run_once(tmp_path: Path):
    values = {
        "loss/total": Scalar(0.5),
        "note": Text("x"),
        "picture": Image(np.zeros((4, 4, 3), "uint8")),
    }
    for sink in (TensorBoardSink(tmp_path / "tensorboard/a", 0), JsonlSink(tmp_path / "metrics/a.jsonl")):
        sink.write(7, values)
        sink.close()
    only_lines = JsonlSink(tmp_path / "metrics/b.jsonl")
    only_lines.write(8, {"loss/total": Scalar(float("nan")), "train/lr": Scalar(0.25)})
    only_lines.close()
    runs = read_scalars(tmp_path)
    assert set(runs) == {"a", "b"}
    assert runs["a"] == {"loss/total": [(7, 0.5)]}
    assert runs["b"]["train/lr"] == [(8, 0.25)]
    assert runs["b"]["loss/total"][0][1] != runs["b"]["loss/total"][0][1]


def test_one_file_is_a_run(tmp_path: Path):
    (tmp_path / "r.jsonl").write_text(
        '{"step": 1, "wall_time": 2.0, "a": 3, "ok": true, "t": {"text": "x"}}\n'
    )
    assert read_scalars(tmp_path / "r.jsonl") == {"r": {"a": [(1, 3.0)]}}
    write_events(tmp_path / "run", {"a": [(0, 1.0)]})
    assert read_scalars(event_file(tmp_path / "run")) == {"run": {"a": [(0, 1.0)]}}


def test_broken_lines_are_skipped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "r.jsonl").write_text('oops\n{"a": 1}\n{"step": 2, "a": 5}\n{"step": 1, "a": 4}\n')
    assert jsonl_log(tmp_path / "r.jsonl").scalars == {"a": [(1, 4.0), (2, 5.0)]}
    assert "lines 1, 2 are broken and skipped" in caplog.text


def test_nothing_to_read_is_an_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="holds no scalars"):
        read_scalars(tmp_path)
    (tmp_path / "x.jsonl").write_text(json.dumps({"step": 1}) + "\n")
    with pytest.raises(ConfigError, match="holds no scalars"):
        read_scalars(tmp_path)
    with pytest.raises(ConfigError, match="there is no file"):
        read_scalars(tmp_path / "absent")


def test_the_last_picture_of_a_tag_comes_back_and_reaches_the_report(tmp_path: Path):
    import base64

    from hjepa_dist_metrics.cli import main
    from hjepa_dist_metrics.sinks.tensorboard.png import encode_png

    shades = {step: Image(np.full((4, 4, 3), 50 * step, np.uint8)) for step in (1, 2)}
    sink = TensorBoardSink(tmp_path / "tensorboard/a", 0)
    for step, image in shades.items():
        sink.write(step, {"masking/coverage": image, "loss/total": Scalar(0.5)})
    sink.close()
    png = encode_png(shades[2].pixels)
    assert [step for step, _ in read_logs(tmp_path)["a"].pictures["masking/coverage"]] == [1, 2]
    page = tmp_path / "report.html"
    assert main(["report", str(tmp_path), "--output", str(page)]) in (0, 1)
    assert base64.b64encode(png).decode() in page.read_text()
    assert "after, step 2" in page.read_text()


def test_event_files_alone_are_read_with_the_lines_beside_them(tmp_path: Path):
    """Event files may lack tags that are rarely read: a verdict from a part of a run would be another one."""
    write_events(tmp_path / "tensorboard/group/run", {"a": [(0, 1.0)]})
    lines = JsonlSink(tmp_path / "metrics/group/run.jsonl")
    lines.write(0, {"a": Scalar(1.0), "rare": Scalar(2.0)})
    lines.close()
    expected = {"a": [(0, 1.0)], "rare": [(0, 2.0)]}
    assert read_scalars(tmp_path) == {"group/run": expected}
    assert read_scalars(tmp_path / "tensorboard") == {"group/run": expected}
    assert read_scalars(tmp_path / "tensorboard/group/run") == {"run": expected}
    assert read_scalars(event_file(tmp_path / "tensorboard/group/run")) == {"run": expected}
    (tmp_path / "metrics/group/run.jsonl").unlink()
    assert read_scalars(tmp_path / "tensorboard") == {"group/run": {"a": [(0, 1.0)]}}
