"""The table of all settings of a run's logging, made from `LoggingConfig`.

`python -m hjepa_dist_metrics.settings.table` rewrites it between its two markers in `configs/README.md`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.settings import schema
from hjepa_dist_metrics.settings.field_docs import Docs

BEGIN, END = "<!-- settings: begin -->", "<!-- settings: end -->"


def settings_table() -> str:
    """Return the Markdown table of all keys with default and meaning; a dot leads into a nested section."""
    rows = [
        f"| `{key}` | `{_as_yaml(default)}` | {text.replace('|', chr(92) + '|')} |"
        for key, default, text in _rows(schema.LoggingConfig(), schema.DOCS)
    ]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


def _rows(section: Any, docs: Docs, above: str = "") -> Iterator[tuple[str, Any, str]]:
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from _rows(value, docs, f"{above}{field.name}.")
        else:
            yield above + field.name, value, docs[type(section).__name__][field.name]


def _as_yaml(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def with_settings(text: str) -> str:
    """Return the text with the table of all settings between the two markers."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ConfigError(f"expected the lines {BEGIN!r} and {END!r} once each")
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n\n{settings_table()}\n\n{END}{rest.split(END)[1]}"


def main(path: Path) -> None:
    """Rewrite the file."""
    path.write_text(with_settings(path.read_text()))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "configs/README.md"))
