"""The strings below the fields of dataclasses, which Python forgets, as text for `help` and tables."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Docs = Mapping[str, Mapping[str, str]]


def field_docs(file: str) -> Docs:
    """Return class name -> field -> the string below it, on one line; {} where there is no source to read."""
    try:
        source = Path(file).read_text(encoding="utf-8")
    except OSError:
        return {}
    classes = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    return {node.name: dict(_below(node)) for node in classes}


def _below(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, text in zip(node.body, node.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            yield field.target.id, " ".join(str(text.value.value).split())


def explain_fields(kind: type[Any], docs: Docs) -> None:
    """Add a line for each field to a dataclass's docstring."""
    lines = [f"    {name}: {text}" for name, text in docs.get(kind.__name__, {}).items()]
    if lines:
        kind.__doc__ = "\n".join([kind.__doc__ or "", "", "Attributes:", *lines, ""])
