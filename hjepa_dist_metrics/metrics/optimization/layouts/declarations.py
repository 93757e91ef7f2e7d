"""The declaration of a layout that would mend what ranks were found to differ in, as text for an error."""

from __future__ import annotations

import re
from collections.abc import Sequence

Classes = Sequence[Sequence[int]]  # the ranks that hold the same, class by class
_PASS = "and hand it to TrainingMonitor(layout=), GradientClipping(layout=) or GradientFlow(layout=)."


def declare_stages(classes: Classes) -> str:
    """Return how to declare that classes of ranks are pipeline stages."""
    code = _code(classes, "pp", 'pipeline="pp"')
    return f"If these are pipeline stages, declare them,\n{code}\n{_PASS}"


def declare_experts(differing: Sequence[str], same: Sequence[str], classes: Classes, named: bool) -> str:
    """Return how to declare that ranks hold other parameters under the names `differing`."""
    pattern = name_pattern(differing, same) if named else "experts\\."
    argument = f'expert={{r"{pattern}": "ep"}}' if pattern else 'pipeline="pp"'
    kind = "experts" if pattern else "pipeline stages"
    code = _code(classes, "ep" if pattern else "pp", argument)
    model = "" if named else " Names tell experts apart: pass the model instead of its parameters."
    reduced = "If they are meant to be copies, average them over ranks first, as DDP does."
    return f"{reduced} If ranks hold different {kind}, declare them,\n{code}\n{_PASS}{model}"


def name_pattern(differing: Sequence[str], same: Sequence[str]) -> str | None:
    """Return a pattern that is found in the names `differing` and none of `same`; None where all differ."""
    if not same:
        return None
    parts = [part for part in differing[0].split(".") if not part.isdigit()]
    for part in parts:
        pattern = rf"(^|\.){re.escape(part)}\."
        if all(re.search(pattern, n) for n in differing) and not any(re.search(pattern, n) for n in same):
            return rf"{re.escape(part)}\."
    return "|".join(re.escape(name) for name in differing[:3])


def rank_list(ranks: Sequence[int]) -> str:
    """Return ranks in words, the first few of many."""
    shown = ", ".join(map(str, ranks[:6])) + (", ..." if len(ranks) > 6 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"


def _code(classes: Classes, name: str, argument: str) -> str:
    if len({len(ranks) for ranks in classes}) > 1:
        return f"    layout = ParallelLayout(mesh, {argument})"
    if len(classes[0]) == 1:
        mesh, names = [ranks[0] for ranks in classes], f'("{name}",)'
    else:
        mesh, names = [list(ranks) for ranks in classes], f'("{name}", "dp")'  # type: ignore[misc]
    return (
        f"    mesh = DeviceMesh(device_type, {mesh}, mesh_dim_names={names})\n"
        f"    layout = ParallelLayout(mesh, {argument})"
    )
