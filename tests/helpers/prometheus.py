"""A real Prometheus server that scrapes a run, where one is installed."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MISSING = "no Prometheus on this machine (apt-get install prometheus)"


def is_installed() -> bool:
    return shutil.which("prometheus") is not None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Prometheus:
    """Ask a server; `query` returns the samples of a PromQL expression, labels and value."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self._base + path, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        data = self.get("/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
        return [(result["metric"], float(result["value"][1])) for result in data["result"]]

    def wait_until(self, expression: str, seconds: float = 60.0) -> list[tuple[dict[str, str], float]]:
        """Return the samples as soon as there are any."""
        deadline = time.monotonic() + seconds
        while not (found := self.query(expression)):
            assert time.monotonic() < deadline, f"{expression} has no samples after {seconds} s"
            time.sleep(0.1)
        return found

    def is_ready(self) -> bool:
        try:
            urllib.request.urlopen(self._base + "/-/ready", timeout=2).close()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
        return True


@contextmanager
def scraping(target: int, folder: Path) -> Iterator[Prometheus]:
    """Start a server that scrapes a port of this machine twice a second."""
    config = {
        "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
        "scrape_configs": [
            {"job_name": "training", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]},
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    port = free_port()
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
    with open(folder / "prometheus.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        server = Prometheus(port)
        deadline = time.monotonic() + 60
        while not server.is_ready():
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            assert time.monotonic() < deadline, "Prometheus is not ready after 60 s"
            time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        process.wait(30)
