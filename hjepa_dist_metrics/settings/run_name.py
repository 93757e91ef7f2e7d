"""Which names a run may have: its files are called by it."""

from __future__ import annotations

from pathlib import PurePath

from hjepa_dist_metrics.errors import ConfigError

# File systems take 255 bytes; `-12`, `.jsonl.tmp` and the like come on top.
_LONGEST_PART, _LONGEST = 200, 1000


def check_run_name(name: str, key: str = "experiment_name") -> None:
    """Raise ConfigError, which names `key`, for a name that leaves the log directory or is no file name."""
    wrong = _fault(name)
    if wrong:
        shown = name if len(name) <= _LONGEST_PART else f"{name[:40]}..."
        raise ConfigError(
            f"{key} is {shown!r}: {wrong}; allowed: a relative name such as 'hjepa_default' or 'sweep/lr3', "
            f"of at most {_LONGEST_PART} bytes between slashes, without '..' and control characters"
        )


def _fault(name: str) -> str:
    path = PurePath(name)
    try:
        sizes = [len(part.encode()) for part in name.split("/")]
    except UnicodeEncodeError:
        return "it holds half of a surrogate pair"
    if not name.strip() or str(path) == ".":
        return "it is empty"
    if path.is_absolute() or ".." in path.parts:
        return "it leads out of the log directory"
    if not name.isprintable():
        return "it holds control characters"
    if max(sizes) > _LONGEST_PART or sum(sizes) > _LONGEST:
        return f"it is too long ({sum(sizes)} bytes)"
    return ""
