"""Measure what metrics cost: python launch/benchmark.py NAME [options], or NAME --help.

Needs the extra [bench]: pip install 'hjepa-dist-metrics[bench]'.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from hjepa_dist_metrics import MetricsError

FOLDER = Path(__file__).resolve().parent / "benchmarks"
EXIT_BAD_INPUT = 2


def names() -> dict[str, str]:
    """Return the sub-commands with the first line of what their modules say."""
    found = {}
    for path in sorted([*FOLDER.glob("[!_]*.py"), *FOLDER.glob("[!_]*/__init__.py")]):
        first = path.read_text(encoding="utf-8").lstrip().splitlines()[0]
        name = path.parent.name if path.name == "__init__.py" else path.stem
        found[name] = first.strip('"').rstrip()
    return found


def usage() -> str:
    """Return the help text."""
    lines = [f"  {name:<12}{text}" for name, text in names().items()]
    return "\n".join(
        ["usage: benchmark.py NAME [options]   (benchmark.py NAME --help says which)", "", *lines]
    )


def main(argv: list[str]) -> int:
    """Run a sub-command and return its exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else EXIT_BAD_INPUT
    if argv[0] not in names():
        print(
            f"benchmark.py: error: unknown benchmark {argv[0]!r}; there are {', '.join(names())}",
            file=sys.stderr,
        )
        return EXIT_BAD_INPUT
    module = importlib.import_module(f"benchmarks.{argv[0]}")
    try:
        return int(module.run(argv[1:]))
    except MetricsError as error:
        print(f"benchmark.py {argv[0]}: error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
