"""Alerts to a chat or a program: one POST for each that begins."""

from __future__ import annotations

import json
import logging
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

from hjepa_dist_metrics.sinks.base import ForkGuard, HParam
from hjepa_dist_metrics.sinks.text import encodable
from hjepa_dist_metrics.values import Notice, Value
from hjepa_dist_metrics.version import __version__

logger = logging.getLogger("hjepa_dist_metrics.sinks")

Format = Literal["json", "slack", "discord"]

MOST_A_MINUTE = 10
_TIMEOUT_SECONDS = 10.0
_ATTEMPTS = 4
_LONGEST = 1900  # Discord takes 2,000 characters


class WebhookSink:
    """Post each notice, an alert that begins, to a URL; numbers and pictures are passed over.

    A post that fails for the network's or the server's reasons (no connection, 429, 5xx) is tried three times
    more, waiting longer each time or as long as the server asks, and is then given up, which is said. In a
    minute ten are posted; how many were held back is said in the next. The URL is a secret: messages name its
    host alone.
    """

    def __init__(
        self,
        url: str,
        run: str,
        format: Format = "json",
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url, self._run, self._format = url, run, format
        self._sleep, self._clock = sleep, clock
        self._guard = ForkGuard()
        self._sent: deque[float] = deque(maxlen=MOST_A_MINUTE)
        self._held_back = 0
        self._opener = urllib.request.build_opener(_NoRedirect)

    def __str__(self) -> str:
        return f"webhook at {urlsplit(self._url).hostname}"

    def write(self, step: int, values: Mapping[str, Value], wall_time: float | None = None) -> None:
        """Post the notices among the values; does not raise for a place that does not take them."""
        if self._guard.in_child:
            return
        now = time.time() if wall_time is None else wall_time
        for tag, value in values.items():
            if isinstance(value, Notice):
                self._notify(tag, step, value, now)

    def write_hparams(self, hparams: Mapping[str, HParam], metrics: Sequence[str] = ()) -> None:
        """Do nothing."""

    def write_status(self, success: bool) -> None:
        """Do nothing: the end of a run is no alert."""

    def flush(self) -> None:
        """Do nothing: posts go out as they come."""

    def close(self) -> None:
        """Do nothing: no connection stays open."""

    def _notify(self, tag: str, step: int, notice: Notice, wall_time: float) -> None:
        if len(self._sent) == MOST_A_MINUTE and self._clock() - self._sent[0] < 60.0:
            self._held_back += 1
            return
        self._sent.append(self._clock())
        body = _body(self._format, self._run, tag, step, notice, wall_time, self._held_back)
        self._held_back = 0
        self._post(json.dumps(body).encode())

    def _post(self, body: bytes) -> None:
        for attempt in range(_ATTEMPTS):
            wait = self._try(body, 2.0**attempt, last=attempt == _ATTEMPTS - 1)
            if wait is None:
                return
            self._sleep(wait)

    def _try(self, body: bytes, wait: float, last: bool) -> float | None:
        """Post once; return how long to wait before the next attempt, None where there is to be none."""
        headers = {"Content-Type": "application/json", "User-Agent": f"hjepa-dist-metrics/{__version__}"}
        try:
            request = urllib.request.Request(self._url, body, headers, method="POST")
            with self._opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
                answer.read(1024)
                return None
        except urllib.error.HTTPError as error:
            reason, again = f"HTTP {error.code}", error.code == 429 or error.code >= 500
            wait = _asked_wait(error.headers.get("Retry-After"), wait)
            error.close()
        except Exception as error:  # the network's errors are of many kinds; none may quote the URL
            reason, again = type(error).__name__, isinstance(error, OSError)
        if again and not last:
            return wait
        logger.error("%s did not take an alert: %s", self, reason)
        return None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follow no redirect: a body with a run's alerts goes to the address that was set, or nowhere."""

    def redirect_request(self, *arguments: Any, **more: Any) -> None:
        """Return no request, which makes the redirect an error."""


def _body(
    format: Format, run: str, tag: str, step: int, notice: Notice, wall_time: float, held_back: int
) -> dict[str, object]:
    if format == "json":
        return {
            "run": encodable(run),
            "step": int(step),
            "level": notice.level,
            "alert": encodable(tag.rpartition("/")[2]),
            "title": encodable(notice.title),
            "text": encodable(notice.text),
            "time": wall_time,
            "held_back": held_back,
        }
    bold = "*" if format == "slack" else "**"
    more = f"\n({held_back} more alerts were held back in the last minute)" if held_back else ""
    head = f"{bold}{notice.level}{bold} in run {run} at step {step}: {bold}{notice.title}{bold}"
    message = encodable(f"{head}\n{notice.text}")[: _LONGEST - len(more)] + more
    if format == "slack":
        return {"text": message.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}
    # No names in an alert's text may call people.
    return {"content": message, "allowed_mentions": {"parse": []}}


def _asked_wait(header: str | None, otherwise: float) -> float:
    """Return the seconds that a server asks for, at most a minute."""
    try:
        return min(max(float(header or otherwise), 0.0), 60.0)
    except ValueError:
        return otherwise
