"""The newest numbers of a run at an HTTP endpoint, for Prometheus to scrape."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from hjepa_dist_metrics.catalog.prometheus import PREFIX, Series, exposition, series_of
from hjepa_dist_metrics.sinks.base import ForkGuard, HParam
from hjepa_dist_metrics.values import Scalar, Value

logger = logging.getLogger("hjepa_dist_metrics.sinks")

MOST_SERIES = 5000
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_OWN = {
    "last_step": Series(f"{PREFIX}last_step", (), "Newest step that has values."),
    "last_step_timestamp_seconds": Series(
        f"{PREFIX}last_step_timestamp_seconds", (), "When the newest step was logged, in seconds since 1970."
    ),
    "series_left_out": Series(
        f"{PREFIX}series_left_out", (), "Series beyond the most that are served, which are left out."
    ),
}


class PrometheusSink:
    """Serve the newest number of each tag at `http://host:port/metrics`, with the run's name as a label.

    `last_step_timestamp_seconds` tells a run that is stuck: `time() - hjepa_last_step_timestamp_seconds`.
    At most 5,000 series are served; how many were left out is a number there too. Values other than numbers
    have no place. Port 0 takes a free one, which `port` and the log tell.
    """

    def __init__(self, run: str, host: str = "127.0.0.1", port: int = 0) -> None:
        self._guard = ForkGuard()
        self._labels = {"run": run}
        self._lock = threading.Lock()  # the writing thread and those that answer
        self._numbers: dict[Series, float] = {}
        self._left_out: set[str] = set()
        self._state: dict[str, float] = {}
        self._server = _Server((host, port), self.render)
        self.port = int(self._server.server_address[1])
        threading.Thread(
            target=self._server.serve_forever, name="hjepa-metrics-prometheus", daemon=True
        ).start()
        logger.warning("metrics of run %r for Prometheus: http://%s:%d/metrics", run, host, self.port)

    def __str__(self) -> str:
        return f"Prometheus endpoint on port {self.port}"

    def write(self, step: int, values: Mapping[str, Value], wall_time: float | None = None) -> None:
        """Take one step's numbers; those of an older step than the newest of their tag count too."""
        if self._guard.in_child:
            return
        now = time.time() if wall_time is None else wall_time
        with self._lock:
            for tag, value in values.items():
                if isinstance(value, Scalar):
                    self._take(tag, value.value)
            self._state["last_step"] = max(float(step), self._state.get("last_step", float(step)))
            self._state["last_step_timestamp_seconds"] = now

    def write_hparams(self, hparams: Mapping[str, HParam], metrics: Sequence[str] = ()) -> None:
        """Do nothing: settings are no numbers that change."""

    def write_status(self, success: bool) -> None:
        """Do nothing: a run that has ended answers no more."""

    def flush(self) -> None:
        """Do nothing: what is written is served at once."""

    def close(self) -> None:
        """Serve no more, and give the port back."""
        if not self._guard.in_child:
            self._server.shutdown()
            self._server.server_close()

    def render(self) -> str:
        """Return the page that Prometheus reads."""
        with self._lock:
            numbers, state = dict(self._numbers), dict(self._state)
            state["series_left_out"] = float(len(self._left_out))
        own = [(_OWN[name], value) for name, value in state.items()]
        return exposition((series, self._labels, value) for series, value in [*own, *numbers.items()])

    def _take(self, tag: str, value: float) -> None:
        series = series_of(tag)
        if series in self._numbers or len(self._numbers) < MOST_SERIES:
            self._numbers[series] = value
            return
        if not self._left_out:
            logger.warning(
                "%s serves %d series; further tags, such as %r, are left out", self, MOST_SERIES, tag
            )
        if len(self._left_out) < 10 * MOST_SERIES:
            self._left_out.add(tag)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], render: Callable[[], str]) -> None:
        self.render = render
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    """Answer GET /metrics, and nothing else."""

    timeout = 10.0  # of a client that does not finish its request
    server_version, sys_version = "hjepa-metrics", ""
    server: _Server

    def do_GET(self) -> None:
        """Send the page."""
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404, "only /metrics is here")
            return
        body = self.server.render().encode()
        self.send_response(200)
        self.send_header("Content-Type", _CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: a scrape comes every few seconds."""
