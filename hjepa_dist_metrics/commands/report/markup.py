"""Pieces of HTML, with all that a log holds written out as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from hjepa_dist_metrics.commands.table import printable


def text(content: object) -> str:
    """Return a text as HTML, control characters written out."""
    return escape(printable(str(content)))


def attribute(content: object) -> str:
    """Return a text as the value of an attribute in double quotes."""
    return escape(printable(str(content)), quote=True)


def table(header: Sequence[str], rows: Iterable[str], numeric: Sequence[int] = ()) -> str:
    """Return a table that scrolls by itself where it is wider than the page."""
    head = "".join(
        f'<th class="n">{text(name)}</th>' if index in numeric else f"<th>{text(name)}</th>"
        for index, name in enumerate(header)
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def row(cells: Sequence[str], numeric: Sequence[int] = (), kind: str = "") -> str:
    """Return a row of cells of HTML; those whose index is in `numeric` are aligned to the right."""
    written = "".join(
        f'<td class="n">{cell}</td>' if index in numeric else f'<td class="wrap">{cell}</td>'
        for index, cell in enumerate(cells)
    )
    return f'<tr class="{kind}">{written}</tr>' if kind else f"<tr>{written}</tr>"
