"""All entries, and how a tag finds its own.

An entry is written beside the metric that reports its tag, as one of the module's `ENTRIES`. The command
`python -m hjepa_dist_metrics.commands.tags` collects them into the files `entries.json` and `TAGS.md`.
"""

from __future__ import annotations

import difflib
import functools

from hjepa_dist_metrics.catalog.entry import Entry, Family, to_regex
from hjepa_dist_metrics.catalog.storage import ENTRIES_FILE, from_json


@functools.cache
def _entries() -> tuple[Entry, ...]:
    return from_json(ENTRIES_FILE.read_text(encoding="utf-8"))


@functools.cache
def _most_specific_first() -> list[Entry]:
    """Return the entries such that `gradients/{module}_mean` comes before `gradients/{name}`."""
    return sorted(_entries(), key=lambda entry: (entry.is_pattern, -entry.literal_length))


def entries(family: Family | None = None) -> tuple[Entry, ...]:
    """Return all entries in reading order, or those of one cadence family."""
    return tuple(entry for entry in _entries() if family in (None, entry.family))


@functools.lru_cache(maxsize=4096)  # a run asks for the same tags at every log
def find(tag: str) -> Entry | None:
    """Return the most specific entry that matches `tag`, or None."""
    return next((entry for entry in _most_specific_first() if entry.matches(tag)), None)


def find_pattern(tag: str) -> Entry | None:
    """Return the entry whose pattern is `tag` itself (`loss/h{i}`), else what `find` returns."""
    return next((entry for entry in _entries() if entry.pattern == tag), None) or find(tag)


def chart_regex(pattern: str) -> str:
    """Return a pattern's regular expression, for Python and JavaScript, without tags that have own entries.

    `loss/train/{name}` stands for the terms of a loss, and not for `loss/train/epoch_mean`.
    """
    entry, regex = find_pattern(pattern), to_regex(pattern)
    if entry is None:
        return regex
    others = [e for e in _entries() if e is not entry and not e.is_pattern and entry.matches(e.pattern)]
    excluded = "|".join(to_regex(other.pattern)[1:] for other in others)
    return f"^(?!{excluded}){regex[1:]}" if excluded else regex


def suggest(tag: str) -> str:
    """Return a hint for an unknown tag: the nearest patterns."""
    near = difflib.get_close_matches(tag, [entry.pattern for entry in _entries()], n=3, cutoff=0.4)
    return "near ones: " + ", ".join(near) if near else "`explain` takes tags such as collapse/effective_rank"
