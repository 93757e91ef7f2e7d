"""Trackio's store holds what was written, as its own dashboard reads it."""

import json
import sys
import urllib.request

import numpy as np
import pytest

from hjepa_dist_metrics import MetricsLogger
from hjepa_dist_metrics.values import Embedding, Histogram, Image, Notice, Scalar, Text, Video

pytestmark = pytest.mark.filterwarnings("ignore")  # of trackio and what it imports


@pytest.fixture
def trackio(monkeypatch, tmp_path):
    """Give trackio with a store of its own: it reads where that is when it is imported."""
    module = pytest.importorskip("trackio", reason="trackio (extra trackio) is not installed")
    store = tmp_path / "trackio"
    for place in [place for name, place in sys.modules.items() if name.partition(".")[0] == "trackio"]:
        for name, directory in {"TRACKIO_DIR": store, "MEDIA_DIR": store / "media"}.items():
            if hasattr(place, name):
                monkeypatch.setattr(place, name, directory)
    return module


def logs(trackio, run="run", project="project"):
    return trackio.SQLiteStorage.get_logs(project, run)


def sink_of(run="run", resume=False):
    from hjepa_dist_metrics.sinks import TrackioSink

    return TrackioSink("project", run, resume)


def test_every_kind_of_value_is_in_the_store_or_said_to_have_no_place(trackio, caplog):
    caplog.set_level("INFO")
    sink = sink_of()
    counts = np.array([0, 3, 1, 0], np.int64)
    sink.write_hparams({"lr": 0.5})
    for step in (7, 8):
        sink.write(
            step,
            {
                "loss/total": Scalar(0.25),
                "nan": Scalar(float("nan")),
                "histogram": Histogram(np.array([-np.inf, 0, 1, 2, np.inf]), counts, 0.5, 1.5, 3.0, 3.0),
                "image": Image(np.zeros((4, 4, 1), np.uint8)),
                "text": Text("**b**"),
                "video": Video(np.zeros((2, 4, 4, 3), np.uint8)),
                "embedding": Embedding(np.ones((2, 2), np.float32)),
                "notices/collapse": Notice("failing", "collapse", "why"),
            },
        )
    sink.close()
    sink.close()
    records = logs(trackio)
    assert [record["step"] for record in records] == [7, 8]
    assert records[0]["loss/total"] == 0.25
    assert records[0]["histogram"]["values"] == [3, 1]
    assert records[0]["histogram"]["bins"] == [0.0, 1.0, 2.0]
    assert records[0]["image"]["_type"] == "trackio.image"
    assert records[0]["text"]["_value"] == "**b**"
    assert not {"video", "embedding", "notices/collapse"} & set(records[0])
    assert trackio.SQLiteStorage.get_run_config("project", "run")["lr"] == 0.5
    alerts = trackio.SQLiteStorage.get_alerts("project", "run")
    got = {(alert["title"], alert["text"], alert["level"], alert["step"]) for alert in alerts}
    assert got == {("collapse", "why", "error", step) for step in (7, 8)}
    said = [text.partition("kind ")[2].partition(",")[0] for text in caplog.messages if "no place" in text]
    assert said == ["Video", "Embedding"]


def test_a_resumed_run_goes_on_and_no_step_is_there_twice(trackio):
    first = sink_of()
    for step in range(5):
        first.write(step, {"a": Scalar(float(step))})
    first.close()
    again = sink_of(resume=True)
    for step in range(3, 8):
        again.write(step, {"a": Scalar(float(step))})
    again.close()
    assert [(record["step"], record["a"]) for record in logs(trackio)] == [(s, float(s)) for s in range(8)]


def test_the_run_of_the_caller_is_left_alone(trackio):
    from trackio import context_vars

    sink = sink_of()
    assert context_vars.current_run.get() is None
    sink.close()


def test_the_dashboard_serves_what_the_logger_wrote(trackio, tmp_path):
    config = {"trackio": {"enabled": True, "project": "project"}, "tensorboard": {"enabled": False}}
    with MetricsLogger("served", tmp_path, config) as logger:
        for step in range(3):
            logger.log_metrics({"loss": step / 2}, step)
    assert logger.failures == []
    assert [(record["step"], record["loss"]) for record in logs(trackio, "served")] == [
        (0, 0),
        (1, 0.5),
        (2, 1),
    ]
    app, url, *_ = trackio.show(project="project", open_browser=False, block_thread=False)
    try:
        body = json.dumps({"project": "project", "run": "served"}).encode()
        request = urllib.request.Request(
            url.split("?")[0].rstrip("/") + "/api/get_logs", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            served = json.load(answer)["data"]
    finally:
        app.close()
    assert [record["loss"] for record in served] == [0, 0.5, 1]
