"""`hjepa-metrics tensorboard`: find the newest logs and start the server on them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import webbrowser
from pathlib import Path

from hjepa_dist_metrics.errors import ConfigError

DEFAULT_PORT = 6006
# Where `find_logs` looks when no directory is named.
_PLACES = ("results", "logs", "runs", ".")
_PORTS_TRIED = 50
_OPENS_WITHIN = 60.0  # seconds that the server may take to answer


def find_logs(place: str | Path | None = None) -> Path:
    """Return the directory to show: of `place`, or of the newest logs below the usual places.

    A log directory's event files are in `tensorboard/`. Raises ConfigError where there are none.
    """
    if place is not None:
        root = Path(place)
        if not root.is_dir():
            raise ConfigError(f"there is no directory {root}")
        inner = root / "tensorboard"
        shown = inner if inner.is_dir() else root
        if not any(shown.rglob("*tfevents*")):
            raise ConfigError(f"{root} holds no event files; a run writes them as it starts")
        return shown
    newest = max(
        (file for name in _PLACES for file in Path(name).rglob("*tfevents*")),
        key=lambda file: file.stat().st_mtime,
        default=None,
    )
    if newest is None:
        raise ConfigError(f"no event files below {', '.join(_PLACES)}; name the log directory")
    parents = [parent for parent in newest.parents if parent.name == "tensorboard"]
    return parents[-1] if parents else newest.parent.parent


def free_port(host: str, port: int | None) -> int:
    """Return `port` if it is free, by default the first free one from 6006 on."""
    wanted = range(DEFAULT_PORT, DEFAULT_PORT + _PORTS_TRIED) if port is None else [port]
    for number in wanted:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, number))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ConfigError(
        f"no free port on {host}: tried {wanted[0]} to {wanted[-1]}; choose another with --port"
    )


def server_arguments(logs: Path, host: str, port: int) -> list[str]:
    """Return TensorBoard's arguments: up to a million points a scalar, not 1,000, and 100 images, not 10.

    0, which its help calls "keep all", gives none at all from its default server.
    """
    return [
        *("--logdir", str(logs), "--host", host, "--port", str(port)),
        *("--samples_per_plugin", "scalars=1000000,images=100"),
    ]


def has_display() -> bool:
    """Return whether a person at this terminal would see a browser: not over SSH, not in a job."""
    if not sys.stdout.isatty() or "SSH_CONNECTION" in os.environ:
        return False
    return sys.platform in ("darwin", "win32") or any(
        os.environ.get(k) for k in ("DISPLAY", "WAYLAND_DISPLAY")
    )


def open_when_ready(link: str, host: str, port: int) -> None:
    """Start a process that opens `link` in the browser once a server listens there."""
    code = f"from {__name__} import wait_and_open; import sys; wait_and_open(*sys.argv[1:])"
    quiet = subprocess.DEVNULL
    subprocess.Popen([sys.executable, "-c", code, link, host, str(port)], stdout=quiet, stderr=quiet)


def wait_and_open(link: str, host: str, port: str) -> None:
    """Open `link` in the browser once a server listens at the address; not at all after a minute."""
    deadline = time.monotonic() + _OPENS_WITHIN
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host, int(port)), timeout=1.0):
                webbrowser.open(link)
                return
        except OSError:
            time.sleep(0.2)
