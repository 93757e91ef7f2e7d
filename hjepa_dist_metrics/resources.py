"""Where the configuration files are that come with the package."""

from __future__ import annotations

import difflib
from pathlib import Path

from hjepa_dist_metrics.errors import ConfigError


def config_dir() -> Path:
    """Return `configs/`: inside the package where a wheel is installed, beside it in a checkout.

    Raises ConfigError where neither is there.
    """
    package = Path(__file__).resolve().parent
    for candidate in (package / "configs", package.parent / "configs"):
        if (candidate / "dashboards").is_dir():
            return candidate
    raise ConfigError(f"no configs/ directory in {package} or beside it: the installation is incomplete")


def config_path(name: str) -> Path:
    """Return the path of a file in `configs/`, such as `default.yaml` or `dashboards/loss.yaml`.

    Raises ConfigError, naming the nearest files, for one that is not there.
    """
    directory = config_dir()
    path = directory / name
    if path.is_file():
        return path
    known = sorted(file.relative_to(directory).as_posix() for file in directory.rglob("*.yaml"))
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
    raise ConfigError(f"no configuration {name!r} in {directory}; there is {', '.join(near)}")
