"""Is every failure found, and nothing else? Runs with planted failures, recorded once and replayed.

`--record` trains what has no trace yet and stores what each run's monitor published under
`tests/health/traces/`; without it the stored traces are replayed through the judge, in seconds. `--held-out`
takes the third of the runs that no rule and no constant is chosen by.
"""

from __future__ import annotations

from collections.abc import Sequence


def run(argv: Sequence[str]) -> int:
    """Record, or replay and print the tables."""
    from benchmarks.health.command import main

    return main(argv)
