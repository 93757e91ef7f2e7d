"""Whether any metric has come to hold other states, or has failed, since one last looked.

One number for the process: a sync that finds it as it was need not look at each of its hundreds of metrics.
"""

from __future__ import annotations

import itertools

_numbers = itertools.count(1)
_latest = 0


def note() -> None:
    """Say that a metric holds other states than before, or has failed."""
    global _latest
    _latest = next(_numbers)


def latest() -> int:
    """Return a number that is another one after every change."""
    return _latest
