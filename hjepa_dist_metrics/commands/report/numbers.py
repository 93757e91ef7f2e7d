"""Headline numbers, and every number in groups that are closed until somebody asks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from hjepa_dist_metrics.commands.headline import Number, headline_numbers
from hjepa_dist_metrics.commands.report.charts import ChartData
from hjepa_dist_metrics.commands.report.markup import attribute, row, table, text
from hjepa_dist_metrics.commands.runs import Run
from hjepa_dist_metrics.commands.table import number
from hjepa_dist_metrics.commands.values import Row, values


def headlines(runs: Sequence[Run]) -> Iterator[str]:
    """Yield the headline numbers: of one run a tile each, of several a table of the last ones."""
    if len(runs) == 1:
        yield f'<ul class="tiles">{"".join(map(_tile, headline_numbers(runs[0])))}</ul>'
        return
    found = [{n.label: n for n in headline_numbers(run)} for run in runs]
    labels = dict.fromkeys(label for of_run in found for label in of_run)
    numeric = range(1, len(runs) + 1)
    yield table(
        ("number", *(run.name for run in runs)), (_compared(label, found) for label in labels), numeric
    )


def everything(runs: Sequence[Run], data: ChartData) -> Iterator[str]:
    """Yield a closed group for each first part of the tags, with a small curve a number."""
    yield '<input type="search" id="filter" placeholder="Filter by tag" aria-label="Filter by tag">'
    for index, run in enumerate(runs):
        if len(runs) > 1:
            yield f'<details id="run-{index}"><summary><b>{text(run.name)}</b></summary>'
        for group, rows in itertools.groupby(values(run), key=lambda one: one.tag.partition("/")[0]):
            members = list(rows)
            for member in members:
                data.add_series(index, member.tag)
            yield (
                f'<details class="group" id="{attribute(f"group-{index}-{group}")}"><summary>{text(group)}, '
                f'{len(members)}</summary><div class="scroll"><table><tr><th>tag</th><th>curve</th>'
                '<th class="n">first</th><th class="n">last</th><th>unit</th>'
                '<th class="meaning">healthy</th></tr>'
            )
            yield from (_member(index, member) for member in members)
            yield "</table></div></details>"
        if len(runs) > 1:
            yield "</details>"


def _member(index: int, member: Row) -> str:
    tag = attribute(member.tag)
    return (
        f'<tr data-tag="{tag}"><td class="wrap"><code>{text(member.tag)}</code></td>'
        f'<td class="spark" data-run="{index}" data-tag="{tag}"></td>'
        f'<td class="n">{number(member.first)}</td><td class="n at">{number(member.last)}</td>'
        f'<td>{text(member.unit)}</td><td class="wrap meaning">{text(member.healthy)}</td></tr>'
    )


def _compared(label: str, found: Sequence[dict[str, Number]]) -> str:
    cells = [number(of_run[label].last) if label in of_run else "-" for of_run in found]
    return row([text(label), *cells], range(1, len(cells) + 1))


def _tile(found: Number) -> str:
    unit = f" {text(found.unit)}" if found.unit else ""
    facts = [f"from {number(found.first)}", *([f"healthy {found.limit}"] if found.limit else [])]
    return (
        f'<li title="{attribute(found.tag)}"><span class="label">{text(found.label)}</span>'
        f'<span class="value">{number(found.last)}<small>{unit}</small></span>'
        f'<span class="from">{text("; ".join(facts))}</span></li>'
    )
