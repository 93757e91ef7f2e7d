"""Alerts arrive at a real receiver, also when it is slow, ill or gone; the URL is never told."""

import json
import logging
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from hjepa_dist_metrics import ConfigError, MetricsLogger, TrainingMonitor
from hjepa_dist_metrics.logging.output import open_output
from hjepa_dist_metrics.parallel import ProcessContext
from hjepa_dist_metrics.settings.schema import from_mapping
from hjepa_dist_metrics.sinks import WebhookSink, background, jsonl_path, read_jsonl
from hjepa_dist_metrics.values import Notice, Scalar

SECRET = "T0K3N"


class Receiver(ThreadingHTTPServer):
    """Answer posts with the codes of `answers`, then 200; keep the bodies that were taken."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.bodies, self.paths, self.requests = [], [], [], 0
        self.hold = threading.Event()
        self.hold.set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/services/{SECRET}?key={SECRET}"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.requests += 1
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.hold.wait(30)
        code = self.server.answers.pop(0) if self.server.answers else 200
        if code == "close":
            self.connection.close()
            return
        if code == 200:
            self.server.bodies.append(json.loads(body))
            self.server.paths.append(self.path)
        self.send_response(code)
        if code == 429:
            self.send_header("Retry-After", "7")
        if code == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def receiver():
    server = Receiver()
    yield server
    server.hold.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def slept():
    return []


def alert(text="rank 3.1 of 64"):
    return {"notices/collapse": Notice("failing", "collapse: features lie on a line", text), "a": Scalar(1.0)}


def test_plain_json_says_all_there_is(receiver):
    WebhookSink(receiver.url, "run").write(7, alert(), wall_time=5.0)
    assert receiver.bodies == [
        {
            "run": "run",
            "step": 7,
            "level": "failing",
            "alert": "collapse",
            "title": "collapse: features lie on a line",
            "text": "rank 3.1 of 64",
            "time": 5.0,
            "held_back": 0,
        }
    ]
    assert receiver.paths == [f"/services/{SECRET}?key={SECRET}"]


def test_slack_and_discord_get_their_own_bodies(receiver):
    WebhookSink(receiver.url, "r", "slack").write(7, alert("<!channel> a & b"))
    WebhookSink(receiver.url, "r", "discord").write(7, alert("@everyone " + "x" * 5000))
    slack, discord = receiver.bodies
    assert slack == {
        "text": "*failing* in run r at step 7: *collapse: features lie on a line*\n&lt;!channel&gt; a &amp; b"
    }
    assert discord["allowed_mentions"] == {"parse": []}
    assert discord["content"].startswith("**failing** in run r at step 7: **collapse: features")
    assert len(discord["content"]) <= 2000


@pytest.mark.parametrize(
    ("answers", "waits"),
    [
        ([500, 503], [1.0, 2.0]),
        (["close", "close"], [1.0, 2.0]),
        ([429], [7.0]),
    ],
)
def test_what_passes_is_tried_again(receiver, slept, answers, waits):
    receiver.answers = list(answers)
    WebhookSink(receiver.url, "run", sleep=slept.append).write(1, alert())
    assert len(receiver.bodies) == 1
    assert slept == waits


@pytest.mark.parametrize(
    ("answers", "attempts", "reason"),
    [([404], 1, "HTTP 404"), ([302], 1, "HTTP 302"), ([500] * 9, 4, "HTTP 500"), (["close"] * 9, 4, "")],
)
def test_what_does_not_pass_is_given_up_and_said_without_the_secret(
    receiver, slept, caplog, answers, attempts, reason
):
    caplog.set_level(logging.DEBUG)
    receiver.answers = list(answers)
    sink = WebhookSink(receiver.url, "run", sleep=slept.append)
    sink.write(1, alert())
    assert (receiver.requests, receiver.bodies) == (attempts, [])
    assert f"webhook at 127.0.0.1 did not take an alert: {reason}" in caplog.text
    assert SECRET not in caplog.text
    receiver.answers = []
    sink.write(2, alert())
    assert len(receiver.bodies) == 1


def test_a_place_that_is_gone_costs_an_alert_and_no_error(receiver, slept, caplog):
    url = receiver.url
    receiver.shutdown()
    receiver.server_close()
    WebhookSink(url, "run", sleep=slept.append).write(1, alert())
    assert slept == [1.0, 2.0, 4.0]
    assert SECRET not in caplog.text


def test_a_minute_takes_ten_and_the_next_says_how_many_were_held_back(receiver):
    now = [0.0]
    sink = WebhookSink(receiver.url, "run", clock=lambda: now[0])
    for step in range(30):
        now[0] += 1.0
        sink.write(step, alert())
    now[0] += 60.0
    sink.write(30, alert())
    assert [body["step"] for body in receiver.bodies] == [*range(10), 30]
    assert receiver.bodies[-1]["held_back"] == 20


def test_numbers_alone_are_no_reason_to_post(receiver):
    WebhookSink(receiver.url, "run").write(1, {"alerts/collapse": Scalar(1.0)})
    assert receiver.requests == 0


def test_a_slow_receiver_delays_nobody(tmp_path, receiver, monkeypatch):
    monkeypatch.setenv("HOOK", receiver.url)
    monkeypatch.setattr(background, "REMOTE_FLUSH_SECONDS", 0.05)
    receiver.hold.clear()
    config = from_mapping({"log_dir": str(tmp_path), "alerts": {"webhook": {"url": "$HOOK"}}})
    output = open_output(config, ProcessContext.current(), "run", 0)
    output.write(0, alert())
    for step in range(100):
        output.write(step, {"loss": Scalar(1.0)})
    output.flush()
    assert len(read_jsonl(jsonl_path(tmp_path, "run"))) == 101
    receiver.hold.set()
    output.close()
    assert len(receiver.bodies) == 1
    assert output.failures == []


def test_a_finding_of_the_monitor_is_posted(tmp_path, receiver):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = {"log_dir": str(tmp_path), "experiment_name": "ill", "log_frequency": 1, "sync": "inline"}
    config["alerts"] = {"webhook": {"url": receiver.url}}
    with TrainingMonitor(model, optimizer, config) as monitor:
        for _ in range(3):
            monitor.step(samples=2, losses=torch.tensor(float("nan")))
    assert monitor.failures == []
    first = receiver.bodies[0]
    assert (first["run"], first["alert"], first["level"]) == ("ill", monitor.alerts[0].rule, "failing")
    assert "loss/total" in first["text"]


def test_the_url_is_in_no_file_and_in_no_text(tmp_path, receiver, caplog):
    caplog.set_level(logging.DEBUG)
    config = from_mapping({"alerts": {"webhook": {"url": receiver.url, "format": "slack"}}})
    assert SECRET not in repr(config)
    with MetricsLogger("run", tmp_path, config) as logger:
        logger.log_metrics({"a": 1.0})
        assert SECRET not in str(logger._output)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path
    assert SECRET not in caplog.text


@pytest.mark.parametrize("url", [f"ftp://host/{SECRET}", SECRET, f"http:///{SECRET}", f"http://h/\n{SECRET}"])
def test_a_wrong_url_is_an_error_that_does_not_quote_it(url):
    with pytest.raises(ConfigError, match=r"alerts.webhook.url is no http:// or https:// URL") as raised:
        from_mapping({"alerts": {"webhook": {"url": url}}})
    assert SECRET not in str(raised.value)


def test_a_variable_that_is_not_set_is_an_error_at_the_start(tmp_path, monkeypatch):
    monkeypatch.delenv("HOOK", raising=False)
    with pytest.raises(ConfigError, match=re.escape("alerts.webhook.url is '$HOOK', but that environment")):
        MetricsLogger("run", tmp_path, {"alerts": {"webhook": {"url": "$HOOK"}}})


def test_the_format_is_one_of_three():
    with pytest.raises(ConfigError, match="'json' or 'slack' or 'discord'"):
        from_mapping({"alerts": {"webhook": {"format": "teams"}}})
