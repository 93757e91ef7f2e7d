"""Whether a model still is made of the same modules and parameters, asked at every step."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn


class ModuleTree:
    """Remember the modules of a model and what they hold.

    To walk through the modules by name, as `named_parameters` does, takes ten times as long as to look
    whether each still holds the same objects.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[Tensor]) -> None:
        modules = list(model.modules())
        self._tables: list[dict[str, Any]] = [table for m in modules for table in (m._modules, m._parameters)]
        known = {id(parameter) for parameter in parameters}
        # A module that shows other tensors than its parameters, as one does that is gathered, tells nothing.
        tells = all(id(p) in known for m in modules for p in m._parameters.values() if p is not None)
        self._shown: list[Any] | None = list(self._contents()) if tells else None

    def is_unchanged(self) -> bool:
        """Return whether every module holds the same as before; False also where it cannot tell."""
        if self._shown is None:
            return False
        now = list(self._contents())
        return len(now) == len(self._shown) and all(map(operator.is_, now, self._shown))

    def _contents(self) -> Iterator[Any]:
        return itertools.chain.from_iterable(map(dict.values, self._tables))
