"""The endpoint is what Prometheus reads, names included; a real server scrapes it and answers PromQL."""

import json
import math
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest

from hjepa_dist_metrics import MetricsLogger
from hjepa_dist_metrics.catalog import entries
from hjepa_dist_metrics.catalog.grafana import expressions, grafana_dashboard
from hjepa_dist_metrics.catalog.prometheus import label_names, metric_name, series_of
from hjepa_dist_metrics.cli import main
from hjepa_dist_metrics.sinks import PrometheusSink, prometheus
from hjepa_dist_metrics.values import Scalar, Text
from tests.helpers.prometheus import MISSING, is_installed, scraping


@pytest.fixture
def sink():
    made = PrometheusSink("run")
    yield made
    made.close()


def page(sink, path="/metrics"):
    with urllib.request.urlopen(f"http://127.0.0.1:{sink.port}{path}", timeout=10) as answer:
        return answer.read().decode()


def samples(sink):
    return dict(line.rsplit(" ", 1) for line in page(sink).splitlines() if not line.startswith("#"))


def test_the_newest_number_of_each_tag_is_served(sink):
    for step in range(3):
        sink.write(step, {"loss/total": Scalar(step / 2), "loss/h1": Scalar(7.0), "t": Text("x")}, 1e9 + step)
    assert samples(sink) == {
        'hjepa_loss_total{run="run"}': "1.0",
        'hjepa_loss_h{run="run",i="1"}': "7.0",
        'hjepa_last_step{run="run"}': "2.0",
        'hjepa_last_step_timestamp_seconds{run="run"}': "1000000002.0",
        'hjepa_series_left_out{run="run"}': "0.0",
    }


def test_numbers_that_are_not_finite_and_odd_names(sink):
    odd = {'a"b\\c\nd': math.nan, "ж": math.inf, "x\udc80": -math.inf, "a/b": 1.0, "a_b": 2.0, "9": 3.0}
    sink.write(0, {tag: Scalar(value) for tag, value in odd.items()})
    got = samples(sink)
    users = {name.partition('tag="')[2][:-2]: value for name, value in got.items() if "hjepa_user" in name}
    assert users == {
        'a\\"b\\\\c\\nd': "NaN",
        "ж": "+Inf",
        "x\\\\udc80": "-Inf",
        "a/b": "1.0",
        "a_b": "2.0",
        "9": "3.0",
    }


def test_no_two_patterns_of_the_catalog_share_a_series():
    scalars = [entry for entry in entries() if entry.kind == "scalar"]
    kinds = {(metric_name(entry.pattern), label_names(entry.pattern)) for entry in scalars}
    assert len(kinds) == len(scalars)
    for entry in scalars:
        tag = entry.pattern.replace("{i}", "3").replace("{rank}", "3").replace("{", "").replace("}", "")
        series = series_of(tag)
        assert series.name.startswith("hjepa_")
        assert not series.name.startswith("hjepa_user_"), tag


def test_promtool_has_no_objection(sink):
    if shutil.which("promtool") is None:
        pytest.skip(MISSING)
    sink.write(0, {entry.pattern.replace("{", "").replace("}", ""): Scalar(0.5) for entry in entries()})
    run = subprocess.run(
        ["promtool", "check", "metrics"], input=page(sink).encode(), capture_output=True, check=False
    )
    assert b"error" not in run.stderr, run.stderr.decode()


def test_the_number_of_series_is_bounded_and_what_is_left_out_counted(sink, monkeypatch, caplog):
    monkeypatch.setattr(prometheus, "MOST_SERIES", 10)
    for step in range(3):
        sink.write(step, {f"t{index}": Scalar(float(step)) for index in range(25)})
    got = samples(sink)
    assert got['hjepa_series_left_out{run="run"}'] == "15.0"
    assert len([name for name in got if "user" in name]) == 10
    assert got['hjepa_user_t9{run="run",tag="t9"}'] == "2.0"
    assert len([text for text in caplog.messages if "are left out" in text]) == 1


def test_nothing_but_the_page_is_there(sink):
    for path in ("/", "/metricsx", "/../etc/passwd"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            page(sink, path)


def test_scrapes_while_values_come(sink):
    stop = threading.Event()

    def write():
        step = 0
        while not stop.is_set():
            sink.write(step, {f"t{index}": Scalar(float(step)) for index in range(50)})
            step += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(20):
            got = samples(sink)
            assert len({value for name, value in got.items() if "user" in name}) <= 1  # of one step
    finally:
        stop.set()
        writer.join()


def test_a_port_that_is_taken_costs_the_endpoint_alone(sink, tmp_path):
    config = {"prometheus": {"enabled": True, "port": sink.port}}
    with MetricsLogger("run", tmp_path, config) as logger:
        logger.log_metrics({"a": 1.0})
    (failure,) = logger.failures
    assert f"Prometheus endpoint at 127.0.0.1:{sink.port} failed in open" in failure
    assert (tmp_path / "metrics" / "run.jsonl").exists()


def test_the_port_is_written_to_the_log(tmp_path, caplog):
    with MetricsLogger("run", tmp_path, {"prometheus": {"enabled": True}}) as logger:
        logger.log_metrics({"a": 1.0})
    assert "metrics of run 'run' for Prometheus: http://127.0.0.1:" in caplog.text


@pytest.mark.skipif(not is_installed(), reason=MISSING)
def test_a_real_server_scrapes_twice_and_answers_promql_and_every_panel(tmp_path, sink):
    dashboard = grafana_dashboard()
    sink.write(0, {"loss/total": Scalar(2.0), "loss/h0": Scalar(1.0), "collapse/effective_rank": Scalar(9.0)})
    with scraping(sink.port, tmp_path) as server:
        server.wait_until('hjepa_loss_total{run="run"} == 2')
        sink.write(1, {"loss/total": Scalar(1.5)}, wall_time=time.time() - 1000)
        ((labels, value),) = server.wait_until('hjepa_loss_total{run="run"} == 1.5')
        assert (labels["run"], labels["job"], value) == ("run", "training", 1.5)
        ((_, change),) = server.query(
            "max_over_time(hjepa_loss_total[1m]) - min_over_time(hjepa_loss_total[1m])"
        )
        assert change == 0.5
        assert server.query("time() - hjepa_last_step_timestamp_seconds > 900")  # how a stuck run is told
        for expression in expressions(dashboard):
            server.query(expression)  # Prometheus parses it
        assert server.query('hjepa_collapse_effective_rank{run=~".*"}')[0][1] == 9.0


def test_the_grafana_dashboard_has_a_panel_for_each_chart(tmp_path, capsys):
    target = tmp_path / "grafana.json"
    assert main(["grafana", "--output", str(target)]) == 0
    dashboard = json.loads(target.read_text())
    titles = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    assert {"Loss", "Collapse"} <= {title.split()[0].split(":")[0] for title in titles}
    assert [panel["id"] for panel in dashboard["panels"]] == list(range(1, len(dashboard["panels"]) + 1))
    assert 'hjepa_loss_h{run=".*"}' in {text.replace("=~", "=") for text in expressions(dashboard)}
    places = [tuple(panel["gridPos"].values()) for panel in dashboard["panels"]]
    assert len({place[:2] for place in places}) == len(places)
    assert main(["grafana", "--dashboards", "lossy"]) == 2
    assert "lossy" in capsys.readouterr().err
