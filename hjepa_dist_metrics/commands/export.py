"""`hjepa-metrics export`: every scalar as one long table, for spreadsheets, pandas and databases."""

from __future__ import annotations

import csv
import fnmatch
import json
import math
from collections.abc import Iterator, Sequence
from typing import IO

from hjepa_dist_metrics.commands.runs import Run
from hjepa_dist_metrics.errors import ConfigError, MissingExtraError

COLUMNS = ("run", "tag", "step", "value")
FORMATS = ("csv", "jsonl", "parquet")
Record = tuple[str, str, int, float]


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
    """Write CSV or JSON lines; nonfinite numbers are NaN, inf and -inf there, and strings here."""
    if kind == "csv":
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((run, tag, step, _text(value)) for run, tag, step, value in rows)
        return
    for run, tag, step, value in rows:
        entry = value if math.isfinite(value) else _text(value)
        stream.write(json.dumps(dict(zip(COLUMNS, (run, tag, step, entry), strict=True))) + "\n")


def write_parquet(rows: Iterator[Record], path: str) -> None:
    """Write a Parquet file (extra `parquet`)."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet", "Writing Parquet") from error
    columns = zip(*rows, strict=True)
    kinds = (pyarrow.string(), pyarrow.string(), pyarrow.int64(), pyarrow.float64())
    arrays = [pyarrow.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    pyarrow.parquet.write_table(pyarrow.table(dict(zip(COLUMNS, arrays, strict=True))), path)


def _text(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return repr(value)
