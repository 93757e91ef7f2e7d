"""The report: one page that refers to nothing outside itself, with what the log holds and no markup of it."""

import base64
import json
import math
import re
import socket
from datetime import datetime
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from hjepa_dist_metrics import MetricsLogger, TrainingMonitor
from hjepa_dist_metrics.commands.report import keep_fresh, render_report
from hjepa_dist_metrics.commands.report.charts import thin
from hjepa_dist_metrics.commands.runs import load_runs
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.sinks.tensorboard.png import encode_png
from tests.helpers.cli import run, write_run


class Page(HTMLParser):
    """Collect what a page refers to, how its elements nest, and the text of each element with an id."""

    def __init__(self, text):
        super().__init__()
        self.references, self.tags, self.open, self.scripts = [], [], [], []
        self.feed(text)
        self.data = json.loads(self.scripts[0])
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.references += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)

    def having(self, tag, **attributes):
        return [a for t, a in self.tags if t == tag and all(a.get(k) == v for k, v in attributes.items())]


def report(tmp_path, refresh=None):
    return render_report(load_runs(tmp_path), refresh)


def test_the_report_is_one_page_with_verdict_evidence_curves_and_settings(tmp_path, capsys):
    write_run(tmp_path, leak=range(1, 10))
    target = tmp_path / "report.html"
    assert run(capsys, "report", str(tmp_path), "--output", str(target))[0] == 0
    text = target.read_text()
    page = Page(text)
    sections = [a["id"] for a in page.having("section")]
    assert sections == ["verdict", "numbers", "curves", "all", "settings", "environment"]
    assert page.references == [f"#{name}" for name in sections]
    assert "url(" not in text
    assert "Failing: the context sees patches that it has to predict" in " ".join(text.split()).replace(
        "</p> <p>", " "
    )
    assert "<b>Likely cause:</b> context and target masks overlap" in text
    assert '<code>training.learning_rate</code></td><td class="wrap">0.5</td>' in text
    charts = page.data["charts"]
    assert charts[0]["series"][0]["tag"] == "masking/context_target_overlap"
    assert charts[0]["marks"] == [{"x": 1, "label": "since step 1"}]
    rank = next(c for c in charts if c["series"][0]["tag"] == "collapse/effective_rank")
    assert rank["band"] == [16.0, None]  # a quarter of 64 dimensions
    assert rank["limits"] == [{"y": 16.0, "label": "healthy: above 16", "kind": "healthy"}]
    steps, values = page.data["runs"][0]["loss/total"]
    assert page.data["steps"][steps] == list(range(10))
    np.testing.assert_allclose(values, [1 / (1 + step) for step in range(10)], rtol=1e-5)


def test_every_chart_and_figure_has_words_for_those_who_do_not_see_it(tmp_path):
    write_run(tmp_path)
    with MetricsLogger("run", tmp_path, resume=True, start_step=10) as logger:
        logger.log_image("masking/coverage", np.zeros((4, 4)), 10)
    page = Page(report(tmp_path))
    described = [a["data-alt"] for a in page.having("figure") if "data-chart" in a]
    assert len(described) == len(page.data["charts"]) > 2
    assert described[0] == "Loss: loss/total from 1 at step 0 to 0.1 at step 9"
    (image,) = page.having("img")
    assert image["alt"] == "mask coverage, drawn once, step 10"


def test_the_first_and_the_last_figure_stand_side_by_side(tmp_path):
    shades = {step: np.full((4, 4, 3), step, np.uint8) for step in (0, 10, 20)}
    with MetricsLogger("run", tmp_path) as logger:
        for step, pixels in shades.items():
            logger.log_metrics({"loss/total": 1.0}, step)
            logger.log_image("masking/coverage", pixels, step)
    text = report(tmp_path)
    images = re.findall(r'alt="([^"]*)" src="data:image/png;base64,([^"]*)"', text)
    assert [alt.split(", ", 1)[1] for alt, _ in images] == ["before, step 0", "after, step 20"]
    expected = [base64.b64encode(encode_png(shades[step])).decode() for step in (0, 20)]
    assert [content for _, content in images] == expected


def test_a_monitored_run_shows_its_environment_and_the_judges_limits(tmp_path):
    model = torch.nn.Linear(4, 8)
    config = {
        "log_dir": str(tmp_path),
        "log_frequency": 1,
        "cadence": {"representations": 1},
        "sync": "inline",
    }
    with TrainingMonitor(model, torch.optim.SGD(model.parameters(), lr=0.1), config) as monitor:
        for _ in range(12):
            monitor.step(samples=8, losses=0.5, features=torch.randn(32, 5, 8))
    text = report(tmp_path)
    page = Page(text)
    rank = next(c for c in page.data["charts"] if c["series"][0]["tag"] == "collapse/effective_rank")
    limits = [line["tag"] for line in rank["series"] if line["colour"] == -1]
    assert limits == ["health/effective_rank_limit", "health/pooled_effective_rank_limit"]
    assert f"12 steps, {datetime.now().year}" in text
    assert f", 1 rank, on {socket.gethostname()}" in text
    section = text[text.index('<section id="environment">') :]
    assert f'<td class="wrap">torch</td><td class="wrap">{torch.__version__}</td>' in section
    lines = load_runs(tmp_path / "metrics")  # JSON lines say the same
    assert f", 1 rank, on {socket.gethostname()}" in render_report(lines)


def test_names_of_a_log_are_never_markup(tmp_path):
    bad = '</script><img src=x onerror="alert(1)">'
    with MetricsLogger("a<b>", tmp_path, use_tensorboard=False) as logger:
        logger.log_hparams({bad: bad})
        logger.log_metrics({bad: 1.0, f"loss/train/{bad.replace('/', '')}": 2.0, "loss/total": 1.0}, 0)
    page = Page(report(tmp_path))
    assert page.having("img") == []
    assert len(page.having("script")) == 3
    assert bad in page.data["runs"][0]


def test_gaps_and_numbers_that_are_not_finite_are_said(tmp_path):
    write_run(tmp_path, loss=lambda step: {2: math.nan, 3: math.inf}.get(step, 1.0))
    text = report(tmp_path)
    page = Page(text)
    _, values = page.data["runs"][0]["loss/total"]
    assert values == [1.0, 1.0, None, None, *[1.0] * 6]
    assert "loss/total is NaN or infinite at 2 steps, first at step 2" in text


def test_thin_keeps_extremes_gaps_and_the_end():
    points = [(step, math.sin(step / 7)) for step in range(100_000)]
    points[777] = (777, 50.0)
    points[5555] = (5555, math.nan)
    thinned = thin(points)
    assert len(thinned) <= 602
    assert [step for step, _ in thinned] == sorted({step for step, _ in thinned})
    assert (777, 50.0) in thinned
    assert thinned[-1] == points[-1]
    assert [step for step, value in thinned if math.isnan(value)] == [5555]
    assert set(thinned) - {(5555, math.nan)} <= {p for p in points if p[0] != 5555} | {thinned[-1]} | {
        p for p in thinned if math.isnan(p[1])
    }
    assert thin(points[:600]) == points[:600]


def test_several_runs_share_charts_and_settings_that_differ_come_first(tmp_path):
    write_run(tmp_path, "good")
    write_run(tmp_path, "ill", leak=range(1, 10))
    with MetricsLogger("other", tmp_path) as logger:
        logger.log_hparams({"model": {"embed_dim": 32}, "training": {"learning_rate": 0.5}})
        logger.log_metrics({"loss/total": 3.0}, 0)
    text = report(tmp_path)
    page = Page(text)
    assert re.findall(r'<td class="(healthy|failing)">', text) == ["healthy", "failing", "healthy"]
    loss = next(c for c in page.data["charts"] if c["series"][0]["tag"] == "loss/total")
    assert [(line["run"], line["name"], line["colour"]) for line in loss["series"]] == [
        (0, "good", 0),
        (1, "ill", 1),
        (2, "other", 2),
    ]
    rows = text[text.index('<section id="settings">') :]
    assert rows.index("model.embed_dim") < rows.index("training.learning_rate")
    assert rows.count('class="differs"') == 1


def test_a_live_page_is_made_anew_and_the_last_one_stays(tmp_path):
    write_run(tmp_path / "logs")
    path, slept, said, seen = tmp_path / "live.html", [], [], []

    def load():
        if len(slept) == 2:
            raise ConfigError("the file is being\nreplaced")
        return load_runs(tmp_path / "logs")

    def sleep(seconds):
        slept.append(seconds)
        seen.append(Page(path.read_text()).data["refresh"])
        if len(slept) == 3:
            raise KeyboardInterrupt

    keep_fresh(load, path, 7.0, said.append, sleep)
    assert slept == [7.0] * 3
    assert seen == [7.0] * 3
    assert Page(path.read_text()).data["refresh"] is None
    assert said == ["not refreshed: the file is being replaced", f"stopped; {path} stays as it is now"]
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["live.html"]


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "x"])
def test_a_refresh_takes_seconds(tmp_path, capsys, seconds):
    with pytest.raises(SystemExit) as stopped:
        run(capsys, "report", str(tmp_path), "--refresh", seconds)
    assert stopped.value.code == 2
