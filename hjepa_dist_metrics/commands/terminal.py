"""Text for a terminal: wrapped at 80 columns, never cut, with colour where somebody looks."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Iterable
from typing import IO

from hjepa_dist_metrics.commands.table import printable

WIDTH = 80
_COLOURS = {"healthy": "32", "warning": "33", "failing": "1;31"}
# A verdict begins a line, or follows the name of a run there.
_VERDICT = re.compile(rf"^(\S.*?: )?({'|'.join(_COLOURS)})(?=[:;]|$)")


def wrap(lines: Iterable[str], width: int = WIDTH) -> list[str]:
    """Return lines of at most `width` columns: longer ones go on indented, longer words stay whole."""
    wrapped: list[str] = []
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        fits = len(line) <= width
        wrapped += (
            [line]
            if fits
            else textwrap.wrap(
                line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
            )
        )
    return wrapped


def say(text: str, stream: IO[str] | None = None) -> None:
    """Print text, control characters of a log written out; verdicts are in colour on a terminal."""
    stream = sys.stdout if stream is None else stream
    lines = map(printable, text.split("\n"))
    print("\n".join(map(_painted, lines) if _is_coloured(stream) else lines), file=stream, flush=True)


def _painted(line: str) -> str:
    """Return the line with its first verdict in colour."""
    return _VERDICT.sub(lambda found: f"{found[1] or ''}\x1b[{_COLOURS[found[2]]}m{found[2]}\x1b[0m", line)


def _is_coloured(stream: IO[str]) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
