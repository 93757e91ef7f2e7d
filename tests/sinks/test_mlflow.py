"""MLflow holds what was written: in a local database, and on a real tracking server that comes late."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from hjepa_dist_metrics import MetricsLogger
from hjepa_dist_metrics.sinks import MlflowSink, Retrying
from hjepa_dist_metrics.sinks.mlflow import metric_name
from hjepa_dist_metrics.values import Embedding, Histogram, Image, Notice, Scalar, Text, Video
from tests.helpers.prometheus import free_port

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow and what it imports


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("DO_NOT_TRACK", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """Give the URI of a database that is made once: its tables take seconds."""
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="MLflow's local database needs sqlalchemy")
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def client(database):
    from mlflow import MlflowClient

    return MlflowClient(database)


def open_sink(tmp_path, database, name="run"):
    return MlflowSink(tmp_path / "mlflow_runs", name, str(tmp_path), database)


def experiment_in(client, tmp_path):
    """Make the experiment with its artifacts below the test's folder."""
    return client.create_experiment(str(tmp_path), artifact_location=(tmp_path / "artifacts").as_uri())


def points(client, run_id, name):
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))


def test_every_kind_of_value_is_there_or_said_to_have_no_place(tmp_path, database, client, caplog):
    caplog.set_level("INFO")
    experiment_in(client, tmp_path)
    sink = open_sink(tmp_path, database)
    sink.write_hparams({"model.dim": 64, "model.name": "x" * 9000, "odd>key": True})
    counts = np.array([0, 3, 1, 0], np.int64)
    for step in (7, 8):
        sink.write(
            step,
            {
                "loss/total": Scalar(0.25 * step),
                "nan": Scalar(float("nan")),
                "histogram": Histogram(np.array([-np.inf, 0, 1, 2, np.inf]), counts, 0.5, 1.5, 3.0, 3.0),
                "figures/image": Image(np.zeros((4, 4, 1), np.uint8)),
                "video": Video(np.zeros((2, 4, 4, 3), np.uint8)),
                "notes/../x": Text("**b**"),
                "embedding": Embedding(np.ones((2, 2), np.float32)),
                "notices/collapse": Notice("failing", "collapse: a line", "why"),
            },
            wall_time=1e9 + step,
        )
    sink.write_status(False)
    sink.close()
    run = client.get_run(sink.run_id)
    assert (run.info.status, run.info.run_name) == ("FAILED", "run")
    assert points(client, sink.run_id, "loss/total") == [(7, 1.75), (8, 2.0)]
    assert np.isnan(run.data.metrics["nan"])
    assert client.get_metric_history(sink.run_id, "loss/total")[0].timestamp == int(1e12) + 7000
    assert (run.data.params["model.dim"], len(run.data.params["model.name"])) == ("64", 6000)
    assert run.data.params[metric_name("odd>key")] == "True"
    assert run.data.tags["notices/collapse"] == "step 8: collapse: a line"
    stored = {str(path.relative_to(tmp_path)).split("artifacts/", 2)[-1] for path in tmp_path.rglob("step_*")}
    kinds = {"figures/figures/image": "png", "figures/video": "png", "text/notes/%2E./x": "md"}
    assert stored == {f"{path}/step_0000000{step}.{kind}" for path, kind in kinds.items() for step in (7, 8)}
    said = [text.partition("kind ")[2].partition(",")[0] for text in caplog.messages if "no place" in text]
    assert said == ["Histogram", "Embedding"]


def test_a_resumed_run_goes_on_and_no_step_is_there_twice(tmp_path, database, client):
    ids = set()
    for first, last in ((0, 5), (3, 8)):
        sink = open_sink(tmp_path, database)
        sink.write_hparams({"lr": first})
        for step in range(first, last):
            sink.write(step, {"a": Scalar(float(step)), "b/c": Scalar(1.0)})
        sink.close()
        ids.add(sink.run_id)
    (run_id,) = ids
    assert points(client, run_id, "a") == [(step, float(step)) for step in range(8)]
    run = client.get_run(run_id)
    assert (run.info.status, run.data.params) == ("FINISHED", {"lr": "0"})


def test_two_runs_are_two(tmp_path, database):
    assert open_sink(tmp_path, database, "a").run_id != open_sink(tmp_path, database, "b").run_id


@pytest.mark.parametrize(
    ("tag", "name"), [("loss/total", "loss/total"), ("a b.c-d_e:f", "a b.c-d_e:f"), ("ж/x", "ж/x")]
)
def test_names_that_mlflow_takes_stay(tag, name):
    assert metric_name(tag) == name


ODD = [
    "a>b",
    "a<b",
    "/a",
    "a//b",
    "../a",
    "..",
    ".",
    "",
    "x" * 300,
    "tab\t",
    "nul\0",
    "a\\b",
    "a/../b",
    "~",
    "%",
]


def test_names_that_mlflow_does_not_take_are_made_fit_and_stay_apart(tmp_path, database, client):
    sink = open_sink(tmp_path, database)
    sink.write(0, {tag: Scalar(float(index)) for index, tag in enumerate(ODD)})
    sink.close()
    got = client.get_run(sink.run_id).data.metrics
    assert {tag: got[metric_name(tag)] for tag in ODD} == {tag: float(i) for i, tag in enumerate(ODD)}


def test_more_numbers_than_a_request_takes(tmp_path, database, client):
    sink = open_sink(tmp_path, database)
    sink.write(0, {f"t/{index}": Scalar(float(index)) for index in range(2100)})
    sink.write_hparams({f"p{index}": index for index in range(250)})
    data = client.get_run(sink.run_id).data
    assert (len(data.metrics), len(data.params)) == (2100, 250)


def test_a_password_in_the_address_is_in_no_message(tmp_path, caplog):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    uri = f"http://user:S3CRET@127.0.0.1:{free_port()}"
    config = {"mlflow": {"enabled": True, "tracking_uri": uri}, "tensorboard": {"enabled": False}}
    logger = MetricsLogger("run", tmp_path, config)
    retrying = next(s for lane in logger._output._lanes for s in lane.group.sinks if isinstance(s, Retrying))
    retrying.hurry()
    retrying._deadline = 0.0  # give up at the first failure
    logger.log_metrics({"a": 1.0}, 0)
    logger.finish()
    (failure,) = logger.failures
    assert "logging to MLflow failed in write" in failure
    assert "S3CRET" not in caplog.text


@pytest.fixture
def server(tmp_path):
    """Give an address, and what starts a real tracking server there."""
    pytest.importorskip("flask", reason="a tracking server needs the whole of mlflow")
    port = free_port()
    started = []

    def start():
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--workers", "1"]
        command += ["--artifacts-destination", str(tmp_path / "server-artifacts")]
        with open(tmp_path / "server.log", "wb") as log:
            started.append(
                subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True)
            )
        deadline = time.monotonic() + 120
        while not is_up(port):
            assert started[0].poll() is None, (tmp_path / "server.log").read_text()
            assert time.monotonic() < deadline, "the MLflow server is not up after 120 s"
            time.sleep(0.2)

    yield f"http://127.0.0.1:{port}", start
    for process in started:
        os.killpg(process.pid, 15)
        process.wait(30)


def is_up(port):
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
    return True


def test_a_server_that_comes_late_gets_everything(tmp_path, server, caplog):
    from mlflow import MlflowClient

    uri, start = server
    config = {
        "mlflow": {"enabled": True, "tracking_uri": uri, "experiment": "e"},
        "tensorboard": {"enabled": False},
    }
    with MetricsLogger("run", tmp_path / "logs", config) as logger:
        logger.log_hparams({"optimizer": {"lr": 0.5}})
        for step in range(20):
            logger.log_metrics({"loss": step / 2, "lr": 0.5}, step)
        logger.log_image("figures/mask", np.zeros((8, 8), np.uint8), 3)
        start()
        logger.log_metrics({"loss": 9.0}, 20)
    assert logger.failures == []
    assert "MLflow does not answer" in caplog.text
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert points(client, run.info.run_id, "loss") == [*((s, s / 2) for s in range(20)), (20, 9.0)]
    assert (run.info.status, run.data.params) == ("FINISHED", {"optimizer.lr": "0.5"})
    assert [file.path for file in client.list_artifacts(run.info.run_id, "figures/figures/mask")] == [
        "figures/figures/mask/step_00000003.png"
    ]
