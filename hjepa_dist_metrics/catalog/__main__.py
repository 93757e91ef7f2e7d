"""Write the table of metrics into a Markdown file: `python -m hjepa_dist_metrics.catalog README.md`."""

from __future__ import annotations

import sys
from pathlib import Path

from hjepa_dist_metrics.catalog import markdown_table
from hjepa_dist_metrics.errors import ConfigError

BEGIN, END = "<!-- metrics: begin -->", "<!-- metrics: end -->"


def with_table(text: str) -> str:
    """Return the text with the table of all metrics between the two markers."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ConfigError(f"expected the lines {BEGIN!r} and {END!r} once each")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    return f"{head}{BEGIN}\n\n{markdown_table().strip()}\n\n{END}{tail}"


def main(path: Path) -> None:
    """Rewrite the file."""
    path.write_text(with_table(path.read_text()))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "README.md"))
