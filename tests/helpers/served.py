"""A log directory with every kind of value, a real TensorBoard on it, and a browser to look."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hjepa_dist_metrics import MetricsLogger
from tests.helpers.processes import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
STEPS = 60
TAGS = [
    *("loss/total", "loss/h0", "loss/h1", "loss/h2", "loss/unweighted", "train/loss", "val/loss"),
    *("ema/momentum_current", "ema/parameter_divergence", "collapse/effective_rank", "learning_rate/base_lr"),
    *("prediction/h0_cosine_similarity_mean", "gradient/global_norm_before_clip", "gradient/was_clipped"),
    *("performance/samples_per_second", "performance/forward_time_ms"),
]


def write_everything(log_dir: Path) -> None:
    """Write a run with all methods of the logger."""
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with MetricsLogger("run", log_dir) as logger:
        logger.log_hparams({"lr": 0.5, "model": {"depth": 3}}, ["loss/total"])
        for step in range(STEPS):
            logger.log_metrics({tag: np.exp(-step / 20) + 0.01 * rng.normal() for tag in TAGS}, step)
        for step in (0, 20, 40):
            logger.log_histogram("weights/0", rng.normal(size=500), step)
            logger.log_image("masking/coverage", rng.random((8, 8)), step)
        logger.log_video("masking/video", rng.random((5, 16)) > 0.5, 40, grid=(4, 4))
        logger.log_text("notes/run", "# A title\n\n**bold**", 0)
        logger.log_embedding(
            "embeddings/targets", torch.randn(20, 4), labels=range(20), images=rng.random((20, 4, 4))
        )
        logger.log_graph(model, torch.zeros(1, 3))
        assert logger.failures == []


def wait_for(what: str, attempt: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Return the first true answer; errors of a server that is not up yet count as none."""
    deadline, last = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        try:
            last = attempt()
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            last = None
            told = str(error)
        else:
            told = repr(last)
        if last:
            return last
        time.sleep(0.2)
    raise AssertionError(f"{what} did not come in {seconds} s; last answer {told[:500]}")


class Board:
    """A running TensorBoard."""

    def __init__(self, url: str) -> None:
        self.url = url

    def raw(self, path: str, body: object = None, **query: object) -> bytes:
        address = f"{self.url}{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return bytes(answer.read())

    def get(self, path: str, body: object = None, **query: object) -> Any:
        return json.loads(self.raw(path, body, **query))


@contextlib.contextmanager
def serve(log_dir: Path) -> Iterator[Board]:
    """Start `hjepa-metrics tensorboard` on a directory and stop it at the end."""
    port = free_port()
    command = [sys.executable, "-m", "hjepa_dist_metrics.cli", "tensorboard", str(log_dir)]
    with tempfile.TemporaryFile() as output:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            board = Board(f"http://127.0.0.1:{port}")
            wait_for("the runs", lambda: server.poll() is not None or board.get("/data/runs"))
            if server.poll() is not None:
                output.seek(0)
                raise AssertionError(f"TensorBoard ended: {output.read().decode()[-2000:]}")
            yield board
        finally:
            server.terminate()
            server.wait(20)


class Browser:
    """A headless Chromium, through chromedriver's HTTP interface (W3C WebDriver)."""

    def __init__(self, driver: str, session: str) -> None:
        self._session = f"{driver}/session/{session}"

    def open(self, url: str) -> None:
        call(f"{self._session}/url", {"url": url})

    def run(self, script: str, *args: object) -> Any:
        """Return what the JavaScript function body returns."""
        return call(f"{self._session}/execute/sync", {"script": script, "args": list(args)})

    def run_until(self, script: str, *args: object) -> Any:
        """Return the first true answer of a JavaScript function body."""
        return wait_for(script, lambda: self.run(script, *args))

    def mouse(self, kind: str, x: float, y: float, clicks: int = 1) -> None:
        """Move, press or release the mouse at a place of the window."""
        button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": clicks}
        self._devtools("Input.dispatchMouseEvent", {"type": kind, "x": x, "y": y, **button})

    def resize(self, width: int, height: int) -> None:
        """Give the page this size in CSS pixels, not counting the window's own frame."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._devtools("Emulation.setDeviceMetricsOverride", metrics)

    def _devtools(self, command: str, parameters: dict[str, object]) -> None:
        call(f"{self._session}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def errors(self) -> list[str]:
        """Return the page's errors since the last call."""
        entries = call(f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]


def call(url: str, body: object = None, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=90) as answer:
        return json.loads(answer.read())["value"]


def missing_browser() -> str:
    """Return what is missing to drive a browser, an empty string where nothing is."""
    return ", ".join(name for name in ("chromium", "chromedriver") if shutil.which(name) is None)


@contextlib.contextmanager
def browse() -> Iterator[Browser]:
    """Start a browser and stop it at the end."""
    port = free_port()
    driver = subprocess.Popen(
        ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for("chromedriver", lambda: call(f"{address}/status")["ready"])
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--window-size=1600,1200",
        ]
        options = {
            "goog:chromeOptions": {"args": flags, "binary": shutil.which("chromium")},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        made = call(f"{address}/session", {"capabilities": {"alwaysMatch": options}})
        yield Browser(address, made["sessionId"])
        call(f"{address}/session/{made['sessionId']}", method="DELETE")
    finally:
        driver.terminate()
        driver.wait(20)
