"""Errors that the package raises on purpose; everything else is a bug."""

from __future__ import annotations


class MetricsError(Exception):
    """Base of every error that `hjepa_dist_metrics` raises on purpose."""


class ConfigError(MetricsError, ValueError):
    """A setting or an argument is wrong; the message names it and says what is valid."""


class DesyncError(MetricsError, RuntimeError):
    """Ranks disagree about what they are about to reduce, or one of them failed to update.

    Raised with the same text on every rank, before any number is reduced.
    """


class SyncTimeoutError(MetricsError, TimeoutError):
    """Ranks did not arrive at a sync within `sync_timeout`; the message names them.

    `ranks` holds their numbers.
    """

    def __init__(self, message: str, ranks: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.ranks = ranks


class RankFailureError(MetricsError, RuntimeError):
    """Ranks died while the others waited for them; the message names them.

    `ranks` holds their numbers, empty where it cannot be told which rank failed.
    """

    def __init__(self, message: str, ranks: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.ranks = ranks


class MissingExtraError(MetricsError, ImportError):
    """An optional dependency is not installed; the message says which extra brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed: "
            f"pip install 'hjepa-dist-metrics[{extra}]'"
        )
