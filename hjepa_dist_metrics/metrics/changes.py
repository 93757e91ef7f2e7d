"""Whether any metric has come to hold other states, or has failed, since one last looked.

One number for the process: a sync that finds it as it was need not look at each of its hundreds of metrics.
"""

from __future__ import annotations

_latest = 0


def note() -> None:
    """Say that a metric holds other states than before, or has failed."""
    global _latest
    _latest += 1  # of two threads' additions one may be lost: it has changed all the same


def latest() -> int:
    """Return a number that is another one after every change."""
    return _latest
