"""What rules have seen, for checkpoints: the plain data in their attributes with a leading underscore."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

_PLAIN = (bool, int, float, str, type(None))


def memory_of(thing: object) -> dict[str, Any]:
    """Return the private attributes that hold numbers, texts, or containers of them; {} where there are none.

    Deques and sets become lists, so that any format of checkpoints can hold them. What else a rule keeps, a
    lock or a tensor, is its own affair.
    """
    kept = {name: value for name, value in _attributes(thing).items() if name.startswith("_")}
    return {name: _to_plain(value) for name, value in kept.items() if _is_plain(value)}


def recall(thing: object, memory: Mapping[str, Any]) -> None:
    """Give an object its memory back; what it does not know, of another version, is left out."""
    attributes = _attributes(thing)
    for name, saved in memory.items():
        present = attributes.get(name)
        if name in attributes and _is_plain(present):
            setattr(thing, name, _like(present, saved))


def _attributes(thing: object) -> dict[str, Any]:
    """Return an object's attributes; {} of one that has no place for any."""
    found: dict[str, Any] = getattr(thing, "__dict__", {})
    return found


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple, set, deque)):
        return all(_is_plain(item) for item in value)
    return isinstance(value, _PLAIN)


def _to_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, set):
        return sorted(value)
    return [_to_plain(item) for item in value] if isinstance(value, (list, tuple, deque)) else value


def _like(present: Any, saved: Any) -> Any:
    """Return what was saved as the kind of container that is there now."""
    if isinstance(present, deque):
        return deque(saved, present.maxlen)
    return set(saved) if isinstance(present, set) else saved
