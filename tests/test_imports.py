"""The architecture, held by the imports: arrows between layers run one way, collectives live in one place."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "hjepa_dist_metrics"
ROOT = Path(__file__).resolve().parent.parent / PACKAGE

VALUES = {"errors", "values", "version"}
CATALOG = VALUES | {"resources", "catalog"}
CORE = CATALOG | {"states", "parallel", "sync", "metrics"}
OUTPUT = CORE | {"sinks", "settings", "logging"}
MONITOR = OUTPUT | {"readers", "figures", "monitor"}

# Layer -> the layers it may import. A new module at the top of the package needs a row here.
ALLOWED: dict[str, set[str]] = {
    "version": set(),
    "errors": set(),
    "values": {"errors"},
    "resources": {"errors"},
    "catalog": CATALOG,
    "states": VALUES | {"states"},
    "parallel": VALUES | {"parallel"},
    "sync": VALUES | {"states", "parallel", "sync"},
    "metrics": CORE,
    "sinks": CATALOG | {"settings", "sinks"},
    "settings": CATALOG | {"settings"},
    "logging": OUTPUT,
    "readers": CATALOG | {"sinks", "readers"},
    # Figures show the numbers of the library's own metrics, of all ranks, and of files.
    "figures": CORE | {"sinks", "readers", "figures"},
    "monitor": MONITOR,
    "integrations": MONITOR | {"integrations"},
    # The reference is the first user of the API, so that it may also import the package's public names.
    "reference": MONITOR | {"reference", "__init__"},
    "commands": MONITOR | {"commands"},
    "cli": MONITOR | {"commands", "integrations", "reference", "cli", "__init__"},
}
# Single files that may import more than their layer.
EXCEPTIONS = {
    # Without a generator of the user's own, example masks are the reference's.
    "figures/masks/pictures.py": {"reference"},
}

COLLECTIVES = {
    "all_reduce",
    "all_reduce_coalesced",
    "all_gather",
    "all_gather_coalesced",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_to_all",
    "all_to_all_single",
    "barrier",
    "batch_isend_irecv",
    "broadcast",
    "broadcast_object_list",
    "gather",
    "gather_object",
    "irecv",
    "isend",
    "monitored_barrier",
    "new_group",
    "new_subgroups",
    "new_subgroups_by_enumeration",
    "recv",
    "recv_object_list",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "scatter",
    "scatter_object_list",
    "send",
    "send_object_list",
    "split_group",
}
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def layer_of(relative: str) -> str:
    return relative.split("/")[0].removesuffix(".py")


def imported_names(tree: ast.AST, relative: str = "") -> Iterator[tuple[int, str, str | None]]:
    """Yield (line, full name, name bound to it) of every import; `import a.b` binds no such name."""
    package = [PACKAGE, *relative.split("/")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, alias.asname
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}", alias.asname or alias.name


def layer_violations(source: str, relative: str) -> list[str]:
    layer = layer_of(relative)
    if layer not in ALLOWED:
        return [f"{relative}: layer {layer!r} has no row in ALLOWED"]
    allowed = ALLOWED[layer] | EXCEPTIONS.get(relative, set())
    found = []
    for line, name, _ in imported_names(ast.parse(source), relative):
        head, _, rest = name.partition(".")
        if head != PACKAGE:
            continue
        target = rest.split(".")[0] if rest.split(".")[0] in ALLOWED else "__init__"
        if target not in allowed:
            found.append(f"{relative}:{line}: {layer} must not import {name}")
    return found


def dotted(node: ast.expr) -> str:
    """Return `a.b.c` of nested attributes of a name, the empty string for any other expression."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def collective_uses(source: str) -> list[str]:
    """Name the torch.distributed collectives that a module imports or refers to, under any alias."""
    tree = ast.parse(source)
    aliases: dict[str, str] = {}
    found = []
    for line, name, bound in imported_names(tree):
        if bound is not None:
            aliases[bound] = name
        if name.startswith("torch.distributed.") and name.rsplit(".", 1)[1] in COLLECTIVES:
            found.append(f"line {line}: import of {name}")
        if name.startswith(("torch.distributed._functional_collectives", "torch.distributed.nn")):
            found.append(f"line {line}: import of {name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in COLLECTIVES:
            first, _, rest = dotted(node).partition(".")
            full = f"{aliases.get(first, first)}.{rest}"
            if full.startswith(("torch.distributed.", "torch._C._distributed_c10d.")):
                found.append(f"line {node.lineno}: {full}")
    return found


@pytest.mark.parametrize("relative", [f for f in FILES if f != "__init__.py"])
def test_arrows_between_layers_run_one_way(relative: str):
    assert layer_violations((ROOT / relative).read_text(), relative) == []


@pytest.mark.parametrize("relative", [f for f in FILES if not f.startswith("parallel/")])
def test_only_the_parallel_layer_calls_collectives(relative: str):
    assert collective_uses((ROOT / relative).read_text()) == []


def test_the_checks_see_the_package():
    assert {"errors.py", "values.py", "parallel/collectives.py"} <= set(FILES)
    assert collective_uses((ROOT / "parallel/collectives.py").read_text()) != []


@pytest.mark.parametrize(
    ("relative", "source"),
    [
        ("states/moments.py", "from hjepa_dist_metrics.metrics.base import DistributedMetric"),
        ("states/moments.py", "def f():\n    import hjepa_dist_metrics.sync"),
        ("values.py", "from hjepa_dist_metrics import catalog"),
        ("metrics/loss.py", "from ..monitor import logger"),
        ("metrics/loss.py", "from .. import sinks"),
        ("metrics/loss.py", "from hjepa_dist_metrics import Scalar"),
        ("sinks/jsonl.py", "from hjepa_dist_metrics.metrics import Collapse"),
        ("extra.py", "import torch"),
    ],
)
def test_a_backward_arrow_is_found(relative: str, source: str):
    assert len(layer_violations(source, relative)) == 1


@pytest.mark.parametrize(
    ("relative", "source"),
    [
        ("metrics/loss.py", "from hjepa_dist_metrics.states.moments import Moments"),
        ("metrics/loss.py", "from ..states import Sum\nfrom . import base"),
        ("sinks/tensorboard.py", "from hjepa_dist_metrics.catalog.dashboards import layout"),
        ("reference/hjepa/train.py", "from hjepa_dist_metrics import TrainingMonitor"),
    ],
)
def test_a_forward_arrow_is_allowed(relative: str, source: str):
    assert layer_violations(source, relative) == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch.distributed as dist\ndist.all_reduce(x)",
        "import torch\ntorch.distributed.barrier()",
        "import torch.distributed\ntorch.distributed.new_group()",
        "from torch import distributed\nf = distributed.all_gather_object",
        "from torch.distributed import broadcast",
        "def f():\n    from torch import distributed as d\n    d.send(x, 1)",
        "from torch.distributed.nn.functional import all_reduce as total",
        "import torch.distributed.distributed_c10d as c10d\nc10d.reduce(x, 0)",
    ],
)
def test_a_collective_is_found_under_any_alias(source: str):
    assert collective_uses(source) != []


@pytest.mark.parametrize(
    "source",
    [
        "import torch.distributed as dist\ndist.is_initialized()",
        "import functools\nfunctools.reduce(f, xs)",
        "import torch\ntorch.gather(x, 0, i)\nx.scatter(0, i, y)",
        "from hjepa_dist_metrics.parallel import collectives\ncollectives.barrier(ctx)",
    ],
)
def test_what_is_not_a_collective_passes(source: str):
    assert collective_uses(source) == []


def test_importing_the_package_loads_nothing_optional():
    optional = (
        *("matplotlib", "tensorboard", "sklearn", "PIL", "jsonargparse"),
        *("rich", "wandb", "psutil", "umap", "pynvml", "mlflow", "trackio"),
        *("torch.distributed.tensor", "sympy"),  # half a second, for jobs that may have no DTensor
    )
    code = f"""
import sys
import torch
before = set(sys.modules)
import {PACKAGE}
{PACKAGE}.TrainingMonitor, {PACKAGE}.metrics.Collapse
print(*sorted(set({optional}) & (set(sys.modules) - before)))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, timeout=120, check=True
    )
    assert run.stdout.split() == []


def pickle_uses(source: str) -> list[str]:
    """Name what a module uses that unpickles what other processes send."""
    words = ("pickle.loads", "pickle.load", "all_gather_object", "broadcast_object_list", "gather_object")
    return [word for word in words if word in source]


# The process that draws figures is this process's own child, on a pipe that nobody else has.
OWN_PIPE = {"figures/worker.py"}


@pytest.mark.parametrize("relative", [f for f in FILES if f not in OWN_PIPE])
def test_nothing_that_other_ranks_send_is_unpickled(relative: str):
    assert pickle_uses((ROOT / relative).read_text()) == []


def test_the_check_sees_what_the_drawing_process_does():
    assert all(pickle_uses((ROOT / relative).read_text()) for relative in OWN_PIPE)
