"""Modules of a model by name, and those that patterns choose."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence

from torch import nn

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.parallel.sharding.parameter_shards import clean_name
from hjepa_dist_metrics.parallel.wrappers import unwrap

_SUGGESTED = 3
_CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules by name, without what wrappers put into names; of a wrapper and its inside, it."""
    named: dict[str, nn.Module] = {}
    for name, module in unwrap(model).named_modules():
        named.setdefault(clean_name(name), module)
    return named


def chosen_modules(model: nn.Module, patterns: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """Return the modules whose names the patterns match as a whole, in the model's order.

    A pattern is a name, "encoder.blocks.11", or a regular expression, r"encoder\\.blocks\\.\\d+". None
    chooses the blocks: what lies in lists of several modules of one class that are in no such list
    themselves, and without any the children of the model. ConfigError, with the nearest names, for a
    pattern that matches no module.
    """
    named = named_modules(model)
    if patterns is None:
        return _blocks(named) or {name: m for name, m in named.items() if name and "." not in name}
    if isinstance(patterns, str):
        patterns = [patterns]
    compiled = [(pattern, _compiled(pattern)) for pattern in patterns]
    for pattern, expression in compiled:
        if pattern not in named and not any(expression.fullmatch(name) for name in named):
            raise ConfigError(_no_match(model, pattern, named))
    return {
        name: module
        for name, module in named.items()
        if any(name == pattern or expression.fullmatch(name) for pattern, expression in compiled)
    }


def _blocks(named: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the children of the outermost lists of modules that are alike."""
    names = {id(module): name for name, module in named.items()}
    found: dict[str, nn.Module] = {}
    for name, module in named.items():
        inside = any(name.startswith(f"{block}.") for block in found)
        if not inside and isinstance(module, _CONTAINERS):
            children = list(module.children())
            if len(children) > 1 and len({type(child) for child in children}) == 1 and _is_block(children[0]):
                found |= {names[id(child)]: child for child in children if id(child) in names}
    return found


def _is_block(module: nn.Module) -> bool:
    """Return whether a module is made of others, as a block is and a lone layer is not."""
    return next(module.children(), None) is not None


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ConfigError(
            f"expected the name of a module or a regular expression, got {pattern!r}: {error}"
        ) from None


def _no_match(model: nn.Module, pattern: str, names: Iterable[str]) -> str:
    known = [name for name in names if name]
    literal = pattern.replace("\\.", ".").replace("\\d+", "0")
    near = list(_nearest(literal, known))
    kind = type(unwrap(model)).__name__
    hint = f"nearest: {', '.join(near)}" if near else f"its modules are {', '.join(known[:8])}, ..."
    return f"no module of {kind} matches {pattern!r}; {hint}"


def _nearest(name: str, known: Sequence[str]) -> Iterator[str]:
    near = difflib.get_close_matches(name, known, n=_SUGGESTED, cutoff=0.4)
    last = name.rpartition(".")[2]
    near += [other for other in known if other.rpartition(".")[2] == last]
    yield from list(dict.fromkeys(near))[:_SUGGESTED]
