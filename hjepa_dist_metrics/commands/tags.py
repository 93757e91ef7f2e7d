"""Collect the entries of all tags: `python -m hjepa_dist_metrics.commands.tags`.

Every module of the packages below may hold `ENTRIES`, a tuple of the entries of the tags that it reports. The
command writes them into `entries.json`, which the catalog reads, and `TAGS.md`, which people read.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.catalog.render import tags_page
from hjepa_dist_metrics.catalog.storage import ENTRIES_FILE, to_json

_METRICS = "hjepa_dist_metrics.metrics"
# In reading order.
PACKAGES = (
    *(
        f"{_METRICS}.{name}"
        for name in ("ssl", "internals", "optimization", "data", "reconstruction", "multimodal", "system")
    ),
    _METRICS,
    "hjepa_dist_metrics.monitor",
)
TAGS_FILE = ENTRIES_FILE.with_name("TAGS.md")

# Groups of tags in reading order; others come after them.
_GROUPS = (
    *(
        "loss",
        "train",
        "train_epoch",
        "val",
        "ema",
        "masking",
        "hierarchy",
        "prediction",
        "collapse",
        "probe",
    ),
    *("patches", "activation", "activation_gradient", "attention", "experts", "gradients", "gradient"),
    *("learning_rate", "update", "weights", "parameters"),
    *("data", "stability"),
    *("Train", "Train_Batch", "Model", "Eval", "embeddings", "optimization", "alignment", "samples"),
    *("performance", "system", "sync", "health", "alerts", "notes", "training"),
)


def collect() -> tuple[Entry, ...]:
    """Return the entries of all modules, groups of tags in reading order and each as its modules have it."""
    modules = [import_module(name) for name in dict.fromkeys(_modules())]
    collected = [entry for module in modules for entry in getattr(module, "ENTRIES", ())]
    return tuple(sorted(collected, key=_place))


def files() -> dict[Path, str]:
    """Return what the generated files should hold."""
    entries = collect()
    return {ENTRIES_FILE: to_json(entries), TAGS_FILE: tags_page(entries)}


def main() -> None:
    """Rewrite the generated files."""
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")


def _modules() -> Iterator[str]:
    for name in PACKAGES:
        package = import_module(name)
        yield from (info.name for info in pkgutil.walk_packages(package.__path__, f"{name}."))


def _place(entry: Entry) -> tuple[int, str]:
    group = entry.pattern.partition("/")[0]
    return (_GROUPS.index(group), "") if group in _GROUPS else (len(_GROUPS), group)


if __name__ == "__main__":
    main()
