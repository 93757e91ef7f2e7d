"""`hjepa-metrics export`: every scalar as one long table, for spreadsheets, pandas and databases."""

from __future__ import annotations

import csv
import fnmatch
import functools
import json
import math
import sys
from collections.abc import Iterator, Sequence
from typing import IO

from hjepa_dist_metrics.catalog.prometheus import exposition, series_of
from hjepa_dist_metrics.commands.runs import Run
from hjepa_dist_metrics.commands.table import printable
from hjepa_dist_metrics.errors import ConfigError, MissingExtraError
from hjepa_dist_metrics.sinks.text import encodable

COLUMNS = ("run", "tag", "step", "value")
# A cell that begins so is a formula to a spreadsheet, which may run programs.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
Record = tuple[str, str, int, float]


def export(runs: Sequence[Run], patterns: Sequence[str], kind: str, output: str | None) -> None:
    """Write the runs' numbers as csv, jsonl, parquet or prometheus, to a file or to standard output.

    ConfigError where no tag matches a pattern, and for Parquet without a file.
    """
    rows = records(runs, patterns)
    if kind == "parquet":
        if output is None:
            raise ConfigError("Parquet is not text: name a file with --output")
        write_parquet(rows, output)
        return
    write = write_prometheus if kind == "prometheus" else functools.partial(write_text, kind=kind)
    if output is None:
        write(rows, stream=sys.stdout)
        return
    with open(output, "w", encoding="utf-8", newline="") as file:
        write(rows, stream=file)


def records(runs: Sequence[Run], patterns: Sequence[str] = ()) -> Iterator[Record]:
    """Yield (run, tag, step, value); `patterns` such as `loss/*` choose tags.

    Raises ConfigError where none of the runs has such a tag.
    """
    found = False
    for run in runs:
        for tag, points in sorted(run.scalars.items()):
            if patterns and not any(fnmatch.fnmatchcase(tag, pattern) for pattern in patterns):
                continue
            found = True
            yield from ((run.name, tag, step, value) for step, value in points)
    if not found:
        raise ConfigError(f"no tag matches {', '.join(patterns)}; `summary --all` lists the tags")


def write_text(rows: Iterator[Record], kind: str, stream: IO[str]) -> None:
    """Write CSV or JSON lines; nonfinite numbers are NaN, inf and -inf there, and strings here.

    In CSV, names that a spreadsheet would take for formulas get an apostrophe before them, and control
    characters are written out.
    """
    if kind == "csv":
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((cell(run), cell(tag), step, _text(value)) for run, tag, step, value in rows)
        return
    for run, tag, step, value in rows:
        entry = value if math.isfinite(value) else _text(value)
        names = encodable(run), encodable(tag)
        stream.write(json.dumps(dict(zip(COLUMNS, (*names, step, entry), strict=True))) + "\n")


def write_prometheus(rows: Iterator[Record], stream: IO[str]) -> None:
    """Write each tag's last number in Prometheus' text format, for node_exporter's textfile collector."""
    last = {(printable(run), printable(tag)): value for run, tag, _, value in rows}
    stream.write(exposition((series_of(tag), {"run": run}, value) for (run, tag), value in last.items()))


def cell(text: str) -> str:
    """Return a name as a cell of CSV that no spreadsheet takes for a formula."""
    clean = printable(text)
    return f"'{clean}" if clean.startswith(_FORMULA) else clean


def write_parquet(rows: Iterator[Record], path: str) -> None:
    """Write a Parquet file (extra `parquet`)."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet", "Writing Parquet") from error
    columns = zip(*((encodable(run), encodable(tag), *rest) for run, tag, *rest in rows), strict=True)
    kinds = (pyarrow.string(), pyarrow.string(), pyarrow.int64(), pyarrow.float64())
    arrays = [pyarrow.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    pyarrow.parquet.write_table(pyarrow.table(dict(zip(COLUMNS, arrays, strict=True))), path)


def _text(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return repr(value)
